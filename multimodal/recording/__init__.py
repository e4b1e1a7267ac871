"""Forward passes of known shapes, recorded once and replayed without the host's work between their launches."""
