"""An OpenAI-compatible endpoint of a pruned model."""
