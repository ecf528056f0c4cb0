"""Sound in and out: devices, streams, files in their place, echo, voice activity and end of turn.

It knows samples and time, but neither conversations nor models.
"""
