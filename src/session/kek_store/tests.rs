//! Tests of which KEKs are kept, and how long each is usable.

use transit_client::key::KeyRef;

use super::*;
use crate::session::local_kek::new_payload;

fn store() -> KekStore {
    let store = KekStore::new(Arc::new(Metrics::new().unwrap()));
    store.configure(1, Some(LocalKekLimits::default()));
    store
}

fn kek(number: usize) -> Arc<LocalKek> {
    let scope = Scope::of(&KeyRef::in_transit("kms"));
    let wrapped = Ciphertext::parse(format!("vault:v1:{number:08}").as_bytes()).unwrap();
    Arc::new(LocalKek::new(&new_payload(), wrapped, scope).unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_number_is_bounded_and_the_least_recently_used_is_evicted_first() {
    let store = store();
    let first = kek(0);
    for number in 0..MAX_KEKS {
        store.insert(if number == 0 { Arc::clone(&first) } else { kek(number) }, store.stamp(1));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(store.get(first.wrapped()).is_some());
    store.insert(kek(MAX_KEKS), store.stamp(1));
    assert!(store.get(first.wrapped()).is_some());
    assert!(store.get(kek(1).wrapped()).is_none());
    // Entries without a KEK are bounded too.
    let error = TransitError::new(ErrorKind::Unreachable, "unreachable");
    for number in 0..2 * MAX_KEKS {
        let kek = kek(number + 10_000);
        store.unwrap_failed(kek.wrapped(), kek.scope(), &error, store.stamp(1));
    }
    assert_eq!(store.lock().entries.len(), MAX_KEKS);
}

#[tokio::test(start_paused = true)]
async fn the_kek_that_encrypts_is_never_evicted() {
    let (store, first, second) = (store(), kek(0), kek(1));
    let fill = |from: usize| {
        (from..from + 2 * MAX_KEKS).for_each(|number| store.insert(kek(number), store.stamp(1)));
    };
    store.insert_encrypting(Arc::clone(&first), store.stamp(1));
    tokio::time::advance(Duration::from_secs(1)).await;
    fill(10_000);
    assert!(store.is_usable(&first));
    // Until another KEK encrypts.
    store.insert_encrypting(Arc::clone(&second), store.stamp(1));
    tokio::time::advance(Duration::from_secs(1)).await;
    fill(20_000);
    assert!(store.is_usable(&second) && !store.is_usable(&first));
    assert_eq!(store.lock().entries.len(), MAX_KEKS);
}

#[tokio::test(start_paused = true)]
async fn entries_without_a_kek_evict_no_kek() {
    let store = store();
    let keks: Vec<_> = (0..MAX_KEKS - 10).map(kek).collect();
    keks.iter().for_each(|kek| store.insert(Arc::clone(kek), store.stamp(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    // As a LIST in an outage reads what other nodes have written.
    let error = TransitError::new(ErrorKind::Unreachable, "unreachable");
    for number in 10_000..12_000 {
        store.unwrap_failed(kek(number).wrapped(), kek(number).scope(), &error, store.stamp(1));
    }
    assert!(keks.iter().all(|kek| store.is_usable(kek)));
}

#[tokio::test(start_paused = true)]
async fn a_report_of_a_replaced_session_changes_nothing() {
    let (store, used, late) = (store(), kek(0), kek(1));
    store.insert_encrypting(Arc::clone(&used), store.stamp(1));
    let old = store.stamp(1);
    store.configure(2, Some(LocalKekLimits::default()));
    for kind in [
        ErrorKind::TokenInvalid,
        ErrorKind::Denied,
        ErrorKind::KeyNotFound,
        ErrorKind::BadCiphertext,
        ErrorKind::VersionTooOld,
    ] {
        store.unwrap_failed(used.wrapped(), used.scope(), &TransitError::new(kind, "no"), old);
        assert!(store.is_usable(&used), "{kind:?}");
    }
    store.refused(1, None);
    assert!(store.is_usable(&used));
    // A late success does not count either, but the wrapped form is kept.
    store.insert(Arc::clone(&late), old);
    assert!(!store.is_usable(&late) && store.lock().entries.contains_key(late.wrapped()));
    store.refused(2, None);
    assert!(!store.is_usable(&used));
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_was_unwrapped_before_a_refusal_is_not_added_after_it() {
    let store = store();
    let (kek, stamp) = (kek(0), store.stamp(1));
    store.refused(1, None);
    store.insert(Arc::clone(&kek), stamp);
    assert!(!store.is_usable(&kek) && store.life(&kek).is_none());
    store.insert(Arc::clone(&kek), store.stamp(1));
    assert!(store.is_usable(&kek));
    store.configure(1, None);
    assert!(!store.is_usable(&kek) && store.lock().entries.is_empty(), "mode transit keeps none");
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_is_not_refreshed_expires() {
    let (store, kek) = (store(), kek(0));
    store.insert(Arc::clone(&kek), store.stamp(1));
    tokio::time::advance(Duration::from_secs(3599)).await;
    assert!(store.is_usable(&kek));
    let left = Duration::from_secs(24 * 3600 - 3599);
    assert_eq!(store.life(&kek), Some((Duration::from_secs(3599), left)), "while Vault is unreachable");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!store.is_usable(&kek) && store.get(kek.wrapped()).is_none());
}
