//! What etcd stores, and what clients of the API read.

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use testkit::{
    cluster::{CONFIG_MAPS, ControlPlane, NAME, SECRETS, record_measurement},
    version_of_key_id,
};

const IN_SECRET: &str = "the very secret value of a Secret";
const IN_CONFIG_MAP: &str = "the less secret value of a ConfigMap";

#[tokio::test]
async fn secrets_and_config_maps_are_encrypted_in_etcd_and_readable_with_kubectl() {
    let begun = Instant::now();
    let control_plane = ControlPlane::ready([]).await;
    let up = begun.elapsed();
    let ControlPlane { caller, cluster, server, .. } = &control_plane;

    server.api().create_secret("first", IN_SECRET).await.unwrap();
    server.api().create_config_map("first", IN_CONFIG_MAP).await.unwrap();

    let key_id = caller.key_id().await;
    for resource in [SECRETS, CONFIG_MAPS] {
        let stored = cluster.etcd.stored(resource, "first").await;
        assert_eq!(stored.prefix(), format!("k8s:enc:kms:v2:{NAME}:"), "{resource}");
        let object = stored.object();
        assert_eq!(object.key_id, key_id, "{resource}");
        assert_eq!(object.annotations, [].into(), "{resource}");
        let source = std::str::from_utf8(&object.encrypted_dek_source).unwrap();
        assert!(source.starts_with(&format!("vault:v{}:", version_of_key_id(&key_id))), "{source}");
        // HKDF_SHA256_XNONCE_AES_GCM_SEED: one DEK seed for many objects.
        assert_eq!(object.dek_source_type, 1, "{resource}");
    }
    cluster.etcd.assert_not_stored(&[IN_SECRET, IN_CONFIG_MAP]).await;

    let kubectl = server.kubectl();
    let secret = kubectl.json(&["get", "secret", "first"]).await;
    assert_eq!(secret["data"]["value"], BASE64.encode(IN_SECRET));
    let config_map = kubectl.json(&["get", "configmap", "first"]).await;
    assert_eq!(config_map["data"]["value"], IN_CONFIG_MAP);
    record_measurement(
        "1 encryption at rest",
        &format!(
            "all components ready in {:.1} s; then a Secret and a ConfigMap, {} Encrypts in all, 0 failures",
            up.as_secs_f64(),
            control_plane.calls("encrypt").await,
        ),
    );
}
