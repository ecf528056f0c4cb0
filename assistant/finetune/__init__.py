"""Fine-tuning as the window sees it: recordings and their labels, run folders, adopted checkpoints.

It knows no torch: training runs in a child process.
"""
