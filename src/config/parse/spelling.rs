//! Finds the known key that a misspelled key probably stands for.

/// Returns the known key that `key` probably is a misspelling of. At most a third of its letters may differ, and at
/// most three.
pub(super) fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let bare = |name: &str| name.chars().filter(|character| character.is_alphanumeric()).collect::<Vec<_>>();
    let key = bare(key);
    let distances = known.iter().map(|name| (distance(&key, &bare(name)), *name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= (name.len() / 3).clamp(1, 3)).then_some(name)
}

/// The Levenshtein distance, in which a swap of two adjacent letters counts as one edit.
fn distance(left: &[char], right: &[char]) -> usize {
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (i, &l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &r) in right.iter().enumerate() {
            let mut cost =
                (at(&above, j) + usize::from(l != r)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && left.get(i - 1) == Some(&r) && right.get(j - 1) == Some(&l);
            if swapped {
                cost = cost.min(at(&before, j - 1) + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut above, row);
    }
    at(&above, right.len())
}
