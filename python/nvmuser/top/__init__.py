"""`nvmuser top`: what targets, volumes and controllers are doing, now. The screen needs the extra `top`."""
