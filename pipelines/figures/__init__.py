"""What is drawn: a file a picture."""
