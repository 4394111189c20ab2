"""The pure train step of one configuration."""
