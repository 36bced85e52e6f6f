//! Resolves settings from flags, environment and file, and collects everything that is wrong with them.

use std::{ffi::OsString, fmt};

/// Settings that have settings of their own: as a table it is on, else it is a flag.
const TABLES: [&str; 1] = ["kubernetes"];

/// Resolves settings one by one: [`Settings::take`] each, then [`Settings::finish`].
pub(super) struct Settings<E> {
    environment: E,
    file: toml::Table,
    problems: Vec<Problem>,
}

/// One thing that is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the setting was given: a flag, a variable or a key of the file.
    pub setting: String,
    /// What is wrong: a clause for people.
    pub what: String,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> =
            self.0.iter().map(|problem| format!("{}: {}", problem.setting, problem.what)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl<E: Fn(&str) -> Option<OsString>> Settings<E> {
    /// Starts with an environment and the text of a file.
    ///
    /// # Errors
    /// When the file is not TOML.
    pub(super) fn new(environment: E, file: &str) -> Result<Self, Problems> {
        let mut file: toml::Table = file.parse().map_err(|error: toml::de::Error| {
            Problems(vec![Problem { setting: "config file".to_owned(), what: error.to_string() }])
        })?;
        for table in TABLES {
            flatten(&mut file, table);
        }
        Ok(Self { environment, file, problems: Vec::new() })
    }

    /// Takes the value of a setting from the first source that has it, or notes what is wrong with it there. A list of the
    /// file is taken as its texts with commas between them. The key `table.key` is that of a table.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        flag: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let variable = format!("MESH_{}", key.to_ascii_uppercase().replace(['-', '.'], "_"));
        let in_file = self.file.remove(key);
        if let Some(text) = flag {
            return self.check(&format!("--{}", key.replace('.', "-")), text, parse);
        }
        if let Some(value) = (self.environment)(&variable) {
            let Some(text) = value.to_str() else {
                return self.note(&variable, "not UTF-8".to_owned());
            };
            return self.check(&variable, text, parse);
        }
        match in_file? {
            toml::Value::String(text) => self.check(key, &text, parse),
            toml::Value::Integer(number) => self.check(key, &number.to_string(), parse),
            toml::Value::Boolean(flag) => self.check(key, &flag.to_string(), parse),
            toml::Value::Array(list) if list.iter().all(toml::Value::is_str) => {
                let texts: Vec<_> = list.iter().filter_map(toml::Value::as_str).collect();
                self.check(key, &texts.join(","), parse)
            }
            other => self.note(key, format!("{} where a text or a number belongs", other.type_str())),
        }
    }

    /// Returns a variable of the environment that is not this program's own, if it is set to something.
    pub(super) fn foreign(&self, name: &str) -> Option<String> {
        let value = (self.environment)(name)?.into_string().ok()?;
        Some(value).filter(|value| !value.trim().is_empty())
    }

    /// Parses a text, or notes what is wrong with it.
    pub(super) fn check<T>(
        &mut self,
        setting: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(text).map_err(|what| self.note::<T>(setting, what)).ok()
    }

    /// Notes that a setting is missing, unless it is there or was given and wrong.
    pub(super) fn require(&mut self, key: &str, present: bool) {
        let flag = format!("--{key}");
        let noted =
            self.problems.iter().any(|problem| problem.setting.ends_with(key) || problem.setting == flag);
        if !present && !noted {
            self.note::<()>(&flag, "is required".to_owned());
        }
    }

    /// Ends the resolving: keys of the file that nobody took are unknown.
    ///
    /// # Errors
    /// Everything that was noted.
    pub(super) fn finish(mut self) -> Result<(), Problems> {
        for key in self.file.keys() {
            self.problems.push(Problem { setting: key.clone(), what: "unknown key".to_owned() });
        }
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }

    fn note<T>(&mut self, setting: &str, what: String) -> Option<T> {
        self.problems.push(Problem { setting: setting.to_owned(), what });
        None
    }
}

/// Puts the keys of a table beside the others, as `table.key`, and a flag in place of the table.
fn flatten(file: &mut toml::Table, name: &str) {
    if !file.get(name).is_some_and(toml::Value::is_table) {
        return;
    }
    if let Some(toml::Value::Table(table)) = file.insert(name.to_owned(), toml::Value::Boolean(true)) {
        file.extend(table.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
    }
}
