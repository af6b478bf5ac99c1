"""A controller that moves with its guest: vfio-user's migration, served by the endpoint itself."""
