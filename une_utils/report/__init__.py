"""What leaves the notebooks: figures with a manifest, the ledger of claims, and the runner that makes both headless."""
