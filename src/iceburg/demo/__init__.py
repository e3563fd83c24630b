"""A generator of realistic installations of any size."""
