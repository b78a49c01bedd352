"""The artifact store: identities, digests, manifests, records of runs."""
