"""Foreign SAE formats, one file each: names, tensor layouts and traps, kept out of the SAE itself."""
