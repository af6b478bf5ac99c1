"""A driver of the Container Storage Interface, over the API: volumes for pods that run virtual machines."""
