import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.set_grad_enabled(False)
settings.register_profile("flowprune", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("flowprune")
