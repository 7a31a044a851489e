"""What a loader sees of SGLang, to be tested without it: the names, the signatures, and who calls whom.

Read from SGLang 0.5.23.
"""
