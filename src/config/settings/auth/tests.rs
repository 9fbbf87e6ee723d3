//! The rules of single values.

use super::*;

fn mounts(pairs: &[(&str, &str)]) -> Result<TrustDomains, BrokenRule> {
    let pair = |&(domain, mount)| (TrustDomainName::new(domain).unwrap(), MountPath::new(mount).unwrap());
    TrustDomains::new(pairs.iter().map(pair).collect())
}

#[test]
fn a_secret_is_one_line_and_is_not_shown() {
    let secret = Secret::new(" SENTINEL with spaces \n").unwrap();
    assert_eq!(secret.expose(), "SENTINEL with spaces");
    assert_eq!(format!("{secret:?}"), "Secret(***)");
    assert_eq!(secret, Secret::new("SENTINEL with spaces").unwrap());
    assert_ne!(secret, Secret::new("SENTINEL").unwrap());
    for text in ["", " ", "a\nb", "a\0b", &"x".repeat(MAX_SECRET_BYTES + 1)] {
        assert!(Secret::new(text).is_err(), "{text:?}");
    }
    assert!(Secret::new(&"x".repeat(MAX_SECRET_BYTES)).is_ok());
}

#[test]
fn trust_domains_and_mounts_correspond_one_to_one() {
    let domains = mounts(&[("prod.acme.net", "jwt-prod"), ("staging.acme.net", "jwt-staging")]).unwrap();
    assert_eq!(domains.mount_of("prod.acme.net").unwrap().as_str(), "jwt-prod");
    assert_eq!(domains.mount_of("dev.acme.net"), None);
    assert_eq!(
        domains.names().map(TrustDomainName::as_str).collect::<Vec<_>>(),
        ["prod.acme.net", "staging.acme.net"]
    );
    assert!(mounts(&[]).is_err());
    assert!(mounts(&[("a", "jwt"), ("b", "jwt")]).unwrap_err().to_string().contains("two trust domains"));
    for text in ["", "Prod.acme.net", "a b", "spiffe://a", "a/b", "a:1", "\u{e9}", &"x".repeat(256)] {
        assert!(TrustDomainName::new(text).is_err(), "{text}");
    }
    assert!(TrustDomainName::new(&"x".repeat(255)).is_ok());
}

#[test]
fn a_spiffe_id_has_a_trust_domain_and_a_path() {
    let id = SpiffeId::new("spiffe://prod.acme.net/ns/kube-system/Transit_KMS.1").unwrap();
    assert_eq!(id.trust_domain().as_str(), "prod.acme.net");
    assert_eq!(id.as_str(), "spiffe://prod.acme.net/ns/kube-system/Transit_KMS.1");
    let long = format!("spiffe://a/{}", "x".repeat(spiffe_names::MAX_SPIFFE_ID_BYTES));
    for text in [
        "",
        "spiffe://a",
        "spiffe://a/",
        "spiffe:///a",
        "spiffe://A/b",
        "SPIFFE://a/b",
        "https://a/b",
        "spiffe://a/b/",
        "spiffe://a//b",
        "spiffe://a/../b",
        "spiffe://a/b?c",
        "spiffe://a/b%20",
        "spiffe://a:1/b",
        "spiffe://u@a/b",
        &long,
    ] {
        assert!(SpiffeId::new(text).is_err(), "{text}");
    }
}

#[test]
fn names_regions_and_sockets_are_checked() {
    for (rule, good, bad) in [
        (
            rules::name as fn(&str) -> Result<String, BrokenRule>,
            ["kms", "spiffe://td/path"].as_slice(),
            ["", "a b", "a\nb", "\u{e9}"].as_slice(),
        ),
        (rules::username, &["node-1", "a.b@c"], &["", "a/b", "/a", "a%", "a?b", "..", "a b"]),
        (rules::region, &["eu-central-1", "us-gov-west-1"], &["", "EU", "a.b", "-a", "a-", "a/b"]),
    ] {
        for text in good {
            assert_eq!(rule(text).unwrap(), *text);
        }
        for text in bad {
            assert!(rule(text).is_err(), "{text}");
        }
    }
    for text in ["unix:///run/api.sock", "unix:/run/api.sock"] {
        assert_eq!(rules::workload_api_socket(text).unwrap(), PathBuf::from("/run/api.sock"));
    }
    for text in ["", "/run/api.sock", "unix://run/api.sock", "tcp://127.0.0.1:1", "unix:"] {
        assert!(rules::workload_api_socket(text).is_err(), "{text}");
    }
}

#[test]
fn mounts_are_below_auth() {
    for (text, expected) in [("approle", "approle"), ("auth/approle/", "approle"), ("/a/b/", "a/b")] {
        assert_eq!(rules::mount(text).unwrap().as_str(), expected);
    }
    for text in ["", "a//b", "a b", "../a"] {
        assert!(rules::mount(text).is_err(), "{text}");
    }
}

#[test]
fn the_path_of_trousseau_has_a_namespace_and_a_mount() {
    let outer = Namespace::new("outer").unwrap();
    let place = |text: &str, namespace: &Namespace| {
        rules::trousseau_place(text, "approle", namespace)
            .map(|(mount, namespace)| (mount.as_str().to_owned(), namespace.as_str().to_owned()))
    };
    let expect = |mount: &str, namespace: &str| Ok((mount.to_owned(), namespace.to_owned()));
    assert_eq!(place("auth", &Namespace::default()), expect("approle", ""));
    assert_eq!(place("/auth/", &outer), expect("approle", "outer"));
    assert_eq!(place("auth/team", &Namespace::default()), expect("team/approle", ""));
    assert_eq!(place("ns/auth/team", &outer), expect("team/approle", "outer/ns"));
    assert!(place("transit", &outer).is_err());
}
