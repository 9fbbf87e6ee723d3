//! What `manifests/` holds is what its sources say.
