"""Problems of cosmology in flat universes of dark energy with a constant equation of state."""
