"""From a manifest to committed features: the plan, one task of it, and the driver that commits."""
