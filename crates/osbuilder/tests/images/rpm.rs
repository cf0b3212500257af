//! Roots of rpm packages, from a repository that the test makes and signs: it stands in for the distributions', which are not asked.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::lab::{Lab, have, have_root, tool};

/// The definitions that are made by dnf.
const DEFINITIONS: [&str; 3] = ["fedora", "centos:7", "clearlinux"];

struct Repository {
    lab: Lab,
}

impl Repository {
    fn new() -> Option<Repository> {
        let needed =
            [("rpmbuild", "rpm"), ("rpmsign", "rpm"), ("createrepo_c", "createrepo-c"), ("gpg", "gpg"), ("dnf", "dnf")];
        if !have(&needed) || !have_root() {
            return None;
        }
        let repository = Repository { lab: Lab::new() };
        let home = repository.home();
        for name in ["right", "wrong"] {
            let id = format!("{name}@example.com");
            tool(
                "gpg",
                ["--batch", "--passphrase", "", "--quick-generate-key", &id, "rsa2048", "sign", "never"],
                &home,
            );
            let file = repository.lab.at(&format!("{name}.asc"));
            tool("gpg", ["--batch", "--armor", "--output", file.to_str().unwrap(), "--export", &id], &home);
        }
        fs::write(repository.lab.at("all.spec"), specification()).unwrap();
        let top = format!("_topdir {}", repository.lab.at("top").display());
        let database = format!("_dbpath {}", repository.lab.at("database").display());
        let spec = repository.lab.at("all.spec");
        tool("rpmbuild", ["-bb", "--quiet", "--define", &top, "--define", &database, spec.to_str().unwrap()], &home);
        for (name, signed) in [("signed", true), ("unsigned", false)] {
            let directory = repository.lab.at(name);
            fs::create_dir(&directory).unwrap();
            let mut packages = Vec::new();
            for entry in fs::read_dir(repository.lab.at("top/RPMS/noarch")).unwrap() {
                let from = entry.unwrap().path();
                let to = directory.join(from.file_name().unwrap());
                fs::copy(from, &to).unwrap();
                packages.push(to.to_str().unwrap().to_owned());
            }
            if signed {
                let options =
                    ["--addsign", "--define", "__gpg /usr/bin/gpg", "--define", "_gpg_name right@example.com"];
                let options = options.into_iter().chain(["--define", &database]).map(str::to_owned);
                tool("rpmsign", options.chain(packages), &home);
            }
            tool("createrepo_c", ["--quiet", directory.to_str().unwrap()], &home);
        }
        Some(repository)
    }

    fn home(&self) -> PathBuf {
        let home = self.lab.at("home");
        if !home.exists() {
            fs::create_dir(&home).unwrap();
            rustix::fs::chmod(&home, 0o700.into()).unwrap();
        }
        home
    }

    fn url(&self, name: &str) -> String {
        format!("file://{}", self.lab.at(name).display())
    }

    fn key(&self, name: &str) -> String {
        self.lab.at(&format!("{name}.asc")).to_str().unwrap().to_owned()
    }
}

/// Names of the packages that a definition wants.
fn packages(definition: &str) -> Vec<String> {
    let table: toml::Table = osbuilder::definition(definition).unwrap().parse().unwrap();
    table["packages"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// A package for every name that a definition wants, each with a file; they need a library. The first has a script, which runs in the
/// root it is installed into.
fn specification() -> String {
    let mut names: Vec<String> = DEFINITIONS.iter().flat_map(|name| packages(name)).collect();
    names.sort();
    names.dedup();
    let mut spec =
        "Name: test-library\nVersion: 3\nRelease: 1\nSummary: Needed\nLicense: Apache-2.0\nBuildArch: noarch\n\
                    %description\nx\n\
                    %install\nmkdir -p %{buildroot}/usr/lib %{buildroot}/usr/share/doc %{buildroot}/usr/bin\n\
                    echo library > %{buildroot}/usr/lib/test-library\n"
            .to_owned();
    for name in &names {
        writeln!(spec, "echo {name} > %{{buildroot}}/usr/bin/{name}; echo text > %{{buildroot}}/usr/share/doc/{name}")
            .unwrap();
    }
    spec.push_str("%files\n/usr/lib/test-library\n%post -p <lua>\nlocal f = io.open(\"/usr/lib/script-ran\", \"w\"); f:write(\"yes\"); f:close()\n");
    for name in &names {
        write!(
            spec,
            "%package -n {name}\nSummary: Stands for a package\nRequires: test-library >= 3\n%description -n {name}\nx\n\
             %files -n {name}\n%attr(4755,root,daemon) /usr/bin/{name}\n%doc /usr/share/doc/{name}\n"
        )
        .unwrap();
    }
    spec
}

#[test]
fn every_definition_becomes_a_root_and_the_same_one_twice() {
    let Some(repository) = Repository::new() else { return };
    let lab = &repository.lab;
    for definition in DEFINITIONS {
        let (url, key) = (repository.url("signed"), repository.key("right"));
        let arguments = ["--source", definition, "--repository", &url, "--key", &key, "--arch", "x86_64"];
        let entries = lab.built(&arguments);
        for name in packages(definition) {
            let entry = &entries[&format!("usr/bin/{name}")];
            assert_eq!((entry.mode, entry.owner), (0o104_755, (0, entry.owner.1)), "{name}");
            assert_eq!(entry.contents.trim(), name);
        }
        assert_eq!(entries["usr/lib/test-library"].contents, "library\n", "what is needed came along");
        assert_eq!(entries["usr/lib/script-ran"].contents, "yes");
        assert_eq!(entries["init"].contents, "/usr/bin/kata-agent");
        assert!(
            !entries.keys().any(|name| name.starts_with("usr/share/doc/") || name.starts_with("dev/n")),
            "{entries:?}"
        );
        let materials = fs::read_to_string(lab.at("out/image.spdx.json")).unwrap();
        assert!(materials.contains("pkg:rpm/test-library@3-1?arch=noarch"), "{materials}");
        let first = fs::read(lab.at("out/image")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        lab.built(&arguments);
        assert!(first == fs::read(lab.at("out/image")).unwrap(), "{definition} is not reproducible");
        assert_eq!(materials, fs::read_to_string(lab.at("out/image.spdx.json")).unwrap());
    }
}

#[test]
fn a_wrong_key_an_unsigned_package_and_an_unreachable_repository_are_refused() {
    let Some(repository) = Repository::new() else { return };
    let lab = &repository.lab;
    let (signed, unsigned, wrong) = (repository.url("signed"), repository.url("unsigned"), repository.key("wrong"));
    let with = |url: &str, rest: &[&str], words: &[&str]| {
        lab.refused(&[&["--source", "fedora", "--arch", "x86_64", "--repository", url], rest].concat(), words);
    };
    let remedy = "(--repository names another, --key its key): dnf failed";
    with(&signed, &["--key", &wrong], &[&signed, remedy, "Public key for", "is not installed", "GPG check FAILED"]);
    // The definition's own key has signed none of them.
    with(&signed, &[], &[remedy, "GPG check FAILED"]);
    with(&unsigned, &["--key", &wrong], &["is not signed", "GPG check FAILED"]);
    with("file:///no/such/{release}/{arch}", &[], &["from file:///no/such/44/x86_64", remedy, "repomd.xml"]);
    with("http://127.0.0.1:1/", &["--key", &wrong], &["from http://127.0.0.1:1/", remedy]);
    with(&signed, &["--key", "/no/such/key"], &["cannot read /no/such/key"]);
    with(
        &signed,
        &["--key", &repository.key("right"), "--package", "no-such-package"],
        &["Unable to find a match: no-such-package"],
    );
    // Clear Linux's own packages are not signed, so an unsigned mirror of it is taken.
    lab.built(&["--source", "clearlinux", "--arch", "x86_64", "--repository", &unsigned]);
}
