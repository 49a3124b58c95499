"""NoiseZoo: the latents that many models give to the same images."""


class ZooError(RuntimeError):
    """The zoo on disk is incomplete or was made from something else; the message says what and what to do."""
