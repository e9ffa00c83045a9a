"""A server of one hardened model: the Open Inference Protocol and a plain route of JSON."""
