"""Foreign SAE formats, one file each: names, tensor layouts and traps, kept out of the SAE itself.

saelens  the SAELens v6 inference folder, which is our own format
"""
