"""Foreign SAE formats, one file each: their names, tensor layouts and traps.

saelens  the SAELens v6 inference folder, which is our own format
"""
