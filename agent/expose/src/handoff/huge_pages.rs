//! Huge pages for memory that is shared: of 4 KiB each, providing it takes many times as long.

use std::{fs, io, path::Path};

/// Where the kernel is told who gets huge pages of shared memory.
pub(crate) const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// Those who ask for them, as the keeper does.
const ON_REQUEST: &str = "advise";

/// Has a node that gives them to nobody give them to those who ask. Any other setting stays as it is. Says whether anything
/// was changed.
pub(crate) fn give_on_request(switch: &Path) -> io::Result<bool> {
    let is_never = fs::read_to_string(switch)?.split_whitespace().any(|word| word == "[never]");
    if is_never {
        fs::write(switch, ON_REQUEST)?;
    }
    Ok(is_never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_gives_none_gives_them_on_request_and_others_stay_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().join("shmem_enabled");
        fs::write(&switch, "always within_size advise [never] deny force\n").unwrap();
        assert!(give_on_request(&switch).unwrap());
        assert_eq!(fs::read_to_string(&switch).unwrap(), ON_REQUEST);
        for other in ["[always] within_size advise never", "always within_size advise never [deny] force"] {
            fs::write(&switch, other).unwrap();
            assert!(!give_on_request(&switch).unwrap());
            assert_eq!(fs::read_to_string(&switch).unwrap(), other);
        }
        assert!(give_on_request(&directory.path().join("none")).is_err());
    }
}
