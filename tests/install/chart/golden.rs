//! What becomes of each value set, word by word. `TRANSIT_KMS_BLESS=1` writes the golden files anew.

use std::{fs, path::PathBuf};

use super::{
    CHART,
    helm::{Helm, sets},
    objects::{objects, objects_in, one},
};

/// What stands in golden files for what comes from a file of the chart.
const FROM_FILES: &str = "# (from a file of the chart)";

#[test]
fn every_value_set_is_rendered_as_its_golden_file_has_it_by_helm_3_and_4() {
    let bless = std::env::var_os("TRANSIT_KMS_BLESS").is_some();
    let mut amiss = Vec::new();
    for set in sets() {
        let text = Helm::V3.render(&set);
        assert_eq!(text, Helm::V4.render(&set), "{set}: what Helm 3 and 4 make of it");
        let (text, file) = (without_files(&text), golden(&set));
        if bless {
            fs::write(&file, &text).unwrap();
        }
        if fs::read_to_string(&file).unwrap_or_default() != text {
            amiss.push(set);
        }
    }
    assert!(amiss.is_empty(), "{amiss:?}: look at what has changed with TRANSIT_KMS_BLESS=1 and git diff");
}

#[test]
fn there_is_no_golden_file_without_a_value_set() {
    let folder = fs::read_dir(golden("minimal").parent().unwrap()).unwrap();
    assert_eq!(folder.count(), sets().len());
}

#[test]
fn rules_and_dashboard_are_those_of_the_files() {
    let rendered = objects(&Helm::V3.render("monitored"));
    let rules = objects_in(&PathBuf::from(format!("{CHART}/files/rules.yaml")));
    assert_eq!(rules.len(), 1);
    assert_eq!(one(&rendered, "PrometheusRule")["spec"], rules[0]);
    let dashboard = fs::read_to_string(format!("{CHART}/files/dashboard.json")).unwrap();
    let shown = rendered.iter().find_map(|object| object["data"]["transit-kms.json"].as_str());
    assert_eq!(shown.unwrap().trim(), dashboard.trim());
}

/// Golden files need not change with what others write: see the test above.
fn without_files(text: &str) -> String {
    let mut kept = String::new();
    let mut cut = false;
    for line in text.lines() {
        if line == "---" {
            cut = false;
        }
        if !cut {
            kept.push_str(line);
            kept.push('\n');
        }
        let rule = line == "spec:" && kept.rsplit("---\n").next().unwrap().contains("kind: PrometheusRule\n");
        if rule || line == "  transit-kms.json: |" {
            kept.push_str(&format!("    {FROM_FILES}\n"));
            cut = true;
        }
    }
    kept
}

fn golden(set: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/install/chart/golden/{set}.yaml", testkit::repository::ROOT))
}
