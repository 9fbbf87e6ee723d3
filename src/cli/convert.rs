//! `transit-kms convert`: prints what replaces the flags of vault-kube-kms.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;

use super::{
    exit::{Exit, after_help},
    vault_kube_kms::{self, FlagsError, Translation},
};

/// Prints the config file and the flags of `serve` that replace the flags of HashiCorp's vault-kube-kms.
///
/// Write the flags of vault-kube-kms after `--`. Its environment variables (VAULT_KUBE_KMS_...) are read too.
///
/// `transit-kms` also starts with these flags directly, without a subcommand. It then runs with exactly the printed
/// config and flags.
#[derive(Args, Debug)]
#[command(after_help = after_help(
    &[Exit::Success, Exit::Usage],
    &format!(
        "Flags of vault-kube-kms: {}\n\n\
         Example:\n  \
         transit-kms convert -- -vault-address=https://vault:8200 -vault-key-path=transit/keys/kms \\\n    \
         -approle-role-id=kms -approle-secret-id-path=/etc/vault-kms/secret-id",
        vault_kube_kms::flag_list(),
    ),
))]
pub struct ConvertArgs {
    /// Print the arguments of `transit-kms`, one on each line, instead of the config file.
    #[arg(long)]
    serve_flags: bool,

    /// The flags of vault-kube-kms.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Prints the config file or the flags.
pub(super) fn main(args: &ConvertArgs) -> ExitCode {
    match vault_kube_kms::translate(&args.flags) {
        Ok(translation) if args.serve_flags => print(&arguments(&translation)),
        Ok(translation) => print(&file(&translation)),
        Err(error) => refuse(&error),
    }
}

/// Prints why the flags of vault-kube-kms cannot be used, or their help.
pub(super) fn refuse(error: &FlagsError) -> ExitCode {
    if let FlagsError::Help(help) = error {
        return print(help);
    }
    // Printing fails only if the output is closed; the exit code is still right.
    drop(writeln!(io::stderr(), "error: {error}"));
    Exit::Usage.into()
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Exit::Success.into(),
        Err(_) => Exit::System.into(),
    }
}

fn arguments(translation: &Translation) -> String {
    let mut text = "serve\n".to_owned();
    for flag in &translation.serve_flags {
        text.push_str(flag);
        text.push('\n');
    }
    text
}

/// The config file, below a comment that says what to change where.
fn file(translation: &Translation) -> String {
    let mut text = String::from(
        "# This file replaces flags of vault-kube-kms. `transit-kms convert` printed it.\n\
         #\n\
         # 1. Save it as /etc/transit-kms/config.yaml, readable only by the user that runs transit-kms.\n\
         # 2. Start transit-kms with these arguments instead of the flags:\n",
    );
    // Writing to a string cannot fail.
    let _ = writeln!(text, "#      serve {}", translation.serve_flags.join(" \\\n#        "));
    text.push_str(
        "# 3. In the EncryptionConfiguration, keep the name and the endpoint of the provider.\n\
         #\n\
         # transit-kms reads this file, the file with the secret_id and the CA file again whenever they change.\n\
         # For several Vault nodes, write `addresses: [...]` instead of `address`.\n",
    );
    for note in &translation.notes {
        let _ = writeln!(text, "# Note: {note}.");
    }
    text + &translation.yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_begins_with_what_to_change_where() {
        let translation = Translation {
            yaml: "vault:\n".into(),
            serve_flags: vec!["--config=/c".into(), "--listen=unix:///s".into()],
            notes: vec!["a difference".into()],
            without_tls: false,
        };
        let file = file(&translation);
        assert!(file.contains("#      serve --config=/c \\\n#        --listen=unix:///s\n"), "{file}");
        assert!(file.ends_with("# Note: a difference.\nvault:\n"), "{file}");
        assert_eq!(arguments(&translation), "serve\n--config=/c\n--listen=unix:///s\n");
    }
}
