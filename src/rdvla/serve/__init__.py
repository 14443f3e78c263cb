"""From a policy to a robot's control loop: the server, its client, and the guard around both.

Nothing is imported here, so that a robot's computer that only needs `rdvla.serve.client` loads numpy, msgpack
and websockets, and nothing else.
"""
