import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)
