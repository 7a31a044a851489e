use tempfile::TempDir;

use super::*;

/// A home with these files, and an environment with these variables beside.
fn home(credentials: &str, config: &str, variables: &[(&str, &str)]) -> (TempDir, Environment) {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join(".aws");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("credentials"), credentials).unwrap();
    std::fs::write(directory.join("config"), config).unwrap();
    let home_variable = [("HOME", home.path().to_str().unwrap())];
    let environment = variables.iter().chain(&home_variable).copied().collect();
    (home, environment)
}

const CREDENTIALS: &str = "
[default]
aws_access_key_id = D1
aws_secret_access_key = D/2+=#;[
; a comment
[me]
  AWS_ACCESS_KEY_ID=M1
  aws_secret_access_key=M2   # mine
  aws_session_token = M3
";

const CONFIG: &str = "
[default]
region = eu-west-1
[profile me]
region=us-west-2 ; far
s3 =
  region = wrong
  endpoint_url = wrong
endpoint_url = http://me
[me]
region = wrong
[profile 'in config']
aws_access_key_id = C1
aws_secret_access_key = C2
[sso-session me]
region = wrong
";

async fn read(variables: &[(&str, &str)]) -> Profile {
    let (_home, environment) = home(CREDENTIALS, CONFIG, variables);
    Profile::read(&environment).await.unwrap()
}

fn words(profile: &Profile) -> [Option<String>; 3] {
    let keys = profile.keys("").unwrap();
    let keys = keys.map(|keys| (keys.key_id, keys.secret_key, keys.token));
    let (id, secret, token) =
        keys.map_or((None, None, None), |(id, secret, token)| (Some(id), Some(secret), token));
    [id, secret, token]
}

#[tokio::test]
async fn keys_region_and_endpoint_are_those_of_the_profile() {
    let some = |text: &str| Some(text.to_owned());
    let default = read(&[]).await;
    assert_eq!(words(&default), [some("D1"), some("D/2+=#;["), None]);
    assert_eq!((default.get("region"), default.get("endpoint_url")), (Some("eu-west-1"), None));
    let me = read(&[("AWS_PROFILE", "me")]).await;
    assert_eq!(words(&me), [some("M1"), some("M2"), some("M3")]);
    assert_eq!((me.get("region"), me.get("endpoint_url")), (Some("us-west-2"), Some("http://me")));
    let in_config = read(&[("AWS_PROFILE", "in config")]).await;
    assert_eq!(words(&in_config), [some("C1"), some("C2"), None]);
}

#[tokio::test]
async fn a_profile_that_is_not_there_matters_only_when_it_is_asked_for() {
    let missing = read(&[("AWS_PROFILE", "you")]).await.keys("s3://b").unwrap_err().to_string();
    assert!(missing.contains("s3://b") && missing.contains("--profile you"), "{missing}");
    let nowhere: Environment = [("HOME", "/nowhere")].into_iter().collect();
    assert!(Profile::read(&nowhere).await.unwrap().keys("").unwrap().is_none());
    let nowhere = [("AWS_PROFILE", "me"), ("AWS_CONFIG_FILE", "/nowhere")].into_iter().collect();
    let missing = Profile::read(&nowhere).await.unwrap().keys("").unwrap_err().to_string();
    assert!(missing.contains("not read: /nowhere"), "{missing}");
    assert!(Profile::read(&Environment::default()).await.unwrap().keys("").unwrap().is_none());
}

#[tokio::test]
async fn what_is_no_keys_is_refused_with_the_way_to_get_some() {
    let keys = "aws_access_key_id = A\naws_secret_access_key = B\n";
    for (credentials, config, refused) in [
        ("", "sso_session = corp", true),
        ("", "credential_process = /bin/keys", true),
        ("", "role_arn = arn:aws:iam::1:role/r\nsource_profile = base", true),
        (keys, "role_arn = arn:aws:iam::1:role/r\nsource_profile = default", true),
        (keys, "sso_session = corp", false),
        ("", "region = eu-west-1", false),
    ] {
        let (_home, environment) =
            home(&format!("[default]\n{credentials}"), &format!("[profile default]\n{config}\n"), &[]);
        let keys = Profile::read(&environment).await.unwrap().keys("s3://b/m");
        match keys {
            Err(error) => {
                let told = error.to_string();
                let setting = config.split(' ').next().unwrap();
                assert!(refused && told.contains("s3://b/m") && told.contains(setting), "{told}");
                assert!(told.contains("export-credentials --profile default"), "{told}");
            }
            Ok(keys) => assert!(!refused && keys.is_some() != credentials.is_empty(), "{config}"),
        }
    }
}

#[tokio::test]
async fn a_file_that_is_none_is_named_without_its_secrets() {
    let (_home, environment) = home("[default\naws_secret_access_key = hunter2", "", &[]);
    let error = Profile::read(&environment).await.err().unwrap().to_string();
    assert!(error.contains("credentials") && error.contains("line 1"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_renewed_in_the_file_are_used() {
    let (home, environment) = home(CREDENTIALS, "", &[]);
    let keys = Profile::read(&environment).await.unwrap().keys("").unwrap().unwrap();
    let keys = ProfileKeys::new(&environment, keys);
    let file = home.path().join(".aws/credentials");
    std::fs::write(&file, CREDENTIALS.replace("D1", "D9")).unwrap();
    assert_eq!(keys.get_credential().await.unwrap().key_id, "D1");
    tokio::time::advance(KNOWN_FOR).await;
    assert_eq!(keys.get_credential().await.unwrap().key_id, "D9");
    std::fs::write(&file, "[default]\naws_access").unwrap();
    tokio::time::advance(KNOWN_FOR).await;
    assert_eq!(keys.get_credential().await.unwrap().key_id, "D9");
    assert!(!format!("{keys:?}").contains("D/2"));
}

#[test]
fn any_text_is_a_profile_or_none_without_a_panic() {
    bolero::check!().with_type::<(String, bool)>().for_each(|(text, is_config)| {
        for text in [text.clone(), format!("[default]\n{text}"), format!("[profile default]\na={text}")] {
            let _ = section(&text, "default", *is_config, Path::new("config"));
        }
    });
}
