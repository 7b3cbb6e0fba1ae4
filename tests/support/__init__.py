"""What several test files share: small corpora and stores, servers, clusters, faults."""
