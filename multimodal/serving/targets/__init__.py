"""A pruning config as the arguments of engines that prune by themselves, or read what we hand over: one file a target.

What a target cannot express is refused in one sentence, with the nearest arguments that it can.
"""
