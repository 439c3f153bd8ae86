"""What tests of voxray and of tasks outside it share: contract checks, gloo spawn, Ray fixtures."""
