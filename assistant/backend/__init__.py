"""The model's process: started, asked, cancelled, watched and restarted, and what crosses its pipe.

It knows no torch: the process imports its server by name.
"""
