"""What is fetched from package registries or a hub: pinned by digest or revision, kept in a cache."""
