//! Resolves settings from flags, environment and file, and collects everything that is wrong with them.
//!
//! A setting `listen-port` is `--listen-port` as a flag, `MESH_LISTEN_PORT` in the environment and `listen-port` in the file;
//! the first of them that is there counts. A setting of a table, `kubernetes.pod-mtu`, is `--kubernetes-pod-mtu`,
//! `MESH_KUBERNETES_POD_MTU` and `pod-mtu` below `[kubernetes]`.

use std::{ffi::OsString, fmt, fs, path::Path};

use anyhow::Context as _;

mod secret;

pub use secret::Secret;

/// Resolves settings one by one: [`Settings::take`] or [`Settings::take_list`] each, then [`Settings::finish`].
pub struct Settings<E> {
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

/// Returns a variable of this process' environment.
#[must_use]
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Reads the file of settings; without one there is nothing in it.
///
/// # Errors
/// When it cannot be read.
pub fn read_file(path: Option<&Path>) -> anyhow::Result<String> {
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read config file {}", path.display()))
    };
    path.map_or_else(|| Ok(String::new()), read)
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> =
            self.0.iter().map(|problem| format!("{}: {}", problem.setting, problem.what)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl<E> fmt::Debug for Settings<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        f.debug_struct("Settings").field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl<E: Fn(&str) -> Option<OsString>> Settings<E> {
    /// Starts with an environment and the text of a file.
    ///
    /// # Errors
    /// When the file is not TOML.
    pub fn new(environment: E, file: &str) -> Result<Self, Problems> {
        let file = file.parse().map_err(|error: toml::de::Error| {
            Problems(vec![Problem { setting: "config file".to_owned(), what: error.to_string() }])
        })?;
        Ok(Self { environment, file, problems: Vec::new() })
    }

    /// Lets a setting have settings of its own: as a table it is on, else it is a flag.
    #[must_use]
    pub fn with_table(mut self, name: &str) -> Self {
        if self.file.get(name).is_some_and(toml::Value::is_table)
            && let Some(toml::Value::Table(table)) =
                self.file.insert(name.to_owned(), toml::Value::Boolean(true))
        {
            self.file.extend(table.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        }
        self
    }

    /// Takes the value of a setting from the first source that has it, or notes what is wrong with it there. A list of the
    /// file is taken as its texts with commas between them.
    pub fn take<T>(
        &mut self,
        key: &str,
        flag: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let flags: Vec<_> = flag.map(str::to_owned).into_iter().collect();
        let Given { setting, texts } = self.find(key, flags)?;
        self.check(&setting, &texts.join(","), parse)
    }

    /// Takes the values of a setting that is a list: a flag given several times, a variable with commas, or an array in the
    /// file.
    pub fn take_list<T>(
        &mut self,
        key: &str,
        flags: &[String],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(Given { setting, mut texts }) = self.find(key, flags.to_vec()) else { return Vec::new() };
        if setting == variable(key) {
            let parts = texts.iter().flat_map(|text| text.split(','));
            texts = parts.map(|part| part.trim().to_owned()).collect();
        }
        texts.iter().filter_map(|text| self.check(&setting, text, &parse)).collect()
    }

    /// Returns a variable of the environment that is not this program's own, if it is set to something.
    pub fn foreign(&self, name: &str) -> Option<String> {
        let value = (self.environment)(name)?.into_string().ok()?;
        Some(value).filter(|value| !value.trim().is_empty())
    }

    /// Parses a text, or notes what is wrong with it.
    pub fn check<T>(
        &mut self,
        setting: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(text).map_err(|what| self.note::<T>(setting, what)).ok()
    }

    /// Notes that a setting is missing, unless it is there or was given and wrong.
    pub fn require(&mut self, key: &str, present: bool) {
        self.require_any(key, &[], present);
    }

    /// Notes that a setting is missing, unless it or one that stands in for it is there or was given and wrong.
    pub fn require_any(&mut self, key: &str, others: &[&str], present: bool) {
        let is_of =
            |setting: &str, key: &str| setting == key || setting == flag(key) || setting == variable(key);
        let is_noted = |key: &str| self.problems.iter().any(|problem| is_of(&problem.setting, key));
        if !present && !is_noted(key) && !others.iter().any(|other| is_noted(other)) {
            self.note::<()>(&flag(key), "is required".to_owned());
        }
    }

    /// Ends the resolving: keys of the file that nobody took are unknown.
    ///
    /// # Errors
    /// Everything that was noted.
    pub fn finish(mut self) -> Result<(), Problems> {
        for key in self.file.keys() {
            self.problems.push(Problem { setting: key.clone(), what: "unknown key".to_owned() });
        }
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }

    fn find(&mut self, key: &str, flags: Vec<String>) -> Option<Given> {
        let in_file = self.file.remove(key);
        if !flags.is_empty() {
            return Some(Given { setting: flag(key), texts: flags });
        }
        let variable = variable(key);
        if let Some(value) = (self.environment)(&variable) {
            return match value.into_string() {
                Ok(text) => Some(Given { setting: variable, texts: vec![text] }),
                Err(_) => self.note(&variable, "not UTF-8".to_owned()),
            };
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

/// Returns the flag of a setting.
fn flag(key: &str) -> String {
    format!("--{}", key.replace('.', "-"))
}

/// Returns the environment variable of a setting.
fn variable(key: &str) -> String {
    format!("MESH_{}", key.to_ascii_uppercase().replace(['-', '.'], "_"))
}

fn text(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        other => Err(format!("{} where a text or a number belongs", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Result<u16, String> {
        text.parse().map_err(|_| format!("{text} is no number"))
    }

    fn settings(file: &str) -> Settings<impl Fn(&str) -> Option<OsString> + use<>> {
        let environment = |name: &str| match name {
            "MESH_TABLE_SIZE" => Some("7".into()),
            "MESH_MANY" => Some("1, 2".into()),
            _ => None,
        };
        Settings::new(environment, file).unwrap().with_table("table")
    }

    #[test]
    fn the_first_source_that_has_a_setting_counts() {
        let mut of_flag = settings("many = [3]\n[table]\nsize = 8");
        assert_eq!(of_flag.take("table.size", Some("9"), number), Some(9));
        assert_eq!(of_flag.take("table", None, |text| Ok(text.to_owned())).as_deref(), Some("true"));
        assert_eq!(of_flag.take_list("many", &["4".to_owned()], number), [4]);
        assert_eq!(of_flag.finish(), Ok(()), "what is overruled is known all the same");

        let mut of_environment = settings("many = [3]\n[table]\nsize = 8");
        assert_eq!(of_environment.take("table.size", None, number), Some(7));
        assert_eq!(of_environment.take_list("many", &[], number), [1, 2]);

        let mut of_file = settings("list = ['a', 'b']\nnumbers = [5, 6]");
        assert_eq!(of_file.take("list", None, |text| Ok(text.to_owned())).as_deref(), Some("a,b"));
        assert_eq!(of_file.take_list("numbers", &[], number), [5, 6]);
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let mut settings = settings("size = 'large'\ndate = 2026-01-01\nother = 1");
        assert_eq!(settings.take("size", None, number), None);
        assert_eq!(settings.take("date", None, number), None);
        assert_eq!(settings.take("port", Some("x"), number), None);
        for key in ["size", "port", "name"] {
            settings.require(key, false);
        }
        assert_eq!(
            settings.finish().unwrap_err().to_string(),
            "size: large is no number\ndate: datetime where a text or a number belongs\n--port: x is no number\n\
             --name: is required\nother: unknown key"
        );
    }
}
