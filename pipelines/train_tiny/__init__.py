"""Trains the small LLaVA that ships in ``multimodal/tiny``, stage by stage."""
