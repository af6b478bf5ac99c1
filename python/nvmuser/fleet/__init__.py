"""Many hosts: what is wanted is declared once, in etcd; each host's supervisor carries out its part (docs/fleet.md)."""
