"""Generated from protos/; `make protos` renews it, a test checks that it is current."""
