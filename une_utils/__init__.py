"""Shared code of the notebooks that study the geometry of diffusion noise.

Data flows one way: ``settings -> images -> models -> zoo -> analysis -> report``; a module imports only from the rooms
to its left, and ``analysis`` sees nothing but arrays.
"""

__version__ = "0.1.0"
