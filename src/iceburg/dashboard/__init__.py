"""The dashboard: one page on loopback that shows an installation on its way to PostgreSQL, and its figures for Prometheus."""
