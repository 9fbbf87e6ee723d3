//! The golden vectors are the output of their scripts, so that they are not edited by hand to fit the code.

use std::fs;
use testkit::{command, temp_dir};

#[test]
fn golden_vectors_match_the_output_of_their_scripts() {
    let folder = testkit::repository::path("tests/golden");
    let mut scripts = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let script = entry.unwrap().path();
        if script.extension().is_none_or(|extension| extension != "py") {
            continue;
        }
        let dir = temp_dir("golden");
        let status = command("python3").arg(&script).current_dir(dir.path()).status().unwrap();
        assert!(status.success(), "{}: {status}", script.display());
        for made in fs::read_dir(dir.path()).unwrap() {
            let made = made.unwrap();
            let kept = fs::read_to_string(folder.join(made.file_name())).unwrap();
            assert_eq!(fs::read_to_string(made.path()).unwrap(), kept, "{}", script.display());
        }
        scripts += 1;
    }
    assert_eq!(scripts, 2);
}
