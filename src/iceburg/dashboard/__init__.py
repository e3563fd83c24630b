"""The dashboard: one page on loopback that shows an installation on its way, and its figures for Prometheus."""
