//! Resolves settings from flags, environment and file, and collects everything that is wrong with them.

use std::{ffi::OsString, fmt};

/// Resolves settings one by one: [`Settings::take`] or [`Settings::take_list`] each, then
/// [`Settings::finish`].
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

/// Texts of one setting, with the place that gave them.
struct Given {
    setting: String,
    texts: Vec<String>,
}

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
        let file = file.parse().map_err(|error: toml::de::Error| {
            Problems(vec![Problem { setting: "config file".to_owned(), what: error.to_string() }])
        })?;
        Ok(Self { environment, file, problems: Vec::new() })
    }

    /// Takes the value of a setting from the first source that has it, or notes what is wrong with it there.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        flag: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let flags: Vec<_> = flag.map(str::to_owned).into_iter().collect();
        let Given { setting, texts } = self.find(key, &flags, |text| vec![text.to_owned()])?;
        let [text] = &texts[..] else {
            return self.note(&setting, "one value belongs here".to_owned());
        };
        self.check(&setting, text, parse)
    }

    /// Takes the values of a setting that is a list: a flag given several times, a variable with commas, or
    /// an array in the file.
    pub(super) fn take_list<T>(
        &mut self,
        key: &str,
        flags: &[String],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let split = |text: &str| text.split(',').map(|part| part.trim().to_owned()).collect();
        let Some(Given { setting, texts }) = self.find(key, flags, split) else { return Vec::new() };
        texts.iter().filter_map(|text| self.check(&setting, text, &parse)).collect()
    }

    /// Parses a text, or notes what is wrong with it.
    pub(super) fn check<T>(
        &mut self,
        setting: &str,
        text: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(text).map_err(|what| self.note::<T>(setting, what)).ok()
    }

    /// Notes that a setting is missing, unless it is there or was given and wrong.
    pub(super) fn require(&mut self, key: &str, present: bool) {
        let names = [key.to_owned(), format!("--{key}"), variable(key)];
        let noted = self.problems.iter().any(|problem| names.contains(&problem.setting));
        if !present && !noted {
            self.note::<()>(&names[1], "is required".to_owned());
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

    fn find(&mut self, key: &str, flags: &[String], split: impl Fn(&str) -> Vec<String>) -> Option<Given> {
        let variable = variable(key);
        let in_file = self.file.remove(key);
        if !flags.is_empty() {
            return Some(Given { setting: format!("--{key}"), texts: flags.to_vec() });
        }
        if let Some(value) = (self.environment)(&variable) {
            let Some(text) = value.to_str() else {
                return self.note(&variable, "not UTF-8".to_owned());
            };
            let texts = split(text);
            return Some(Given { setting: variable, texts });
        }
        let texts = match in_file? {
            toml::Value::Array(values) => values.iter().map(text).collect(),
            value => text(&value).map(|text| vec![text]),
        };
        match texts {
            Ok(texts) => Some(Given { setting: key.to_owned(), texts }),
            Err(what) => self.note(key, what),
        }
    }

    fn note<T>(&mut self, setting: &str, what: String) -> Option<T> {
        self.problems.push(Problem { setting: setting.to_owned(), what });
        None
    }
}

/// Returns the environment variable of a setting.
fn variable(key: &str) -> String {
    format!("MESH_{}", key.to_ascii_uppercase().replace('-', "_"))
}

fn text(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        other => Err(format!("{} where a text or a number belongs", other.type_str())),
    }
}
