"""deploy/scripts/setup-github-oidc.sh, run with the AWS command line against moto's IAM, STS and S3."""

import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from peer import ROOT, Moto

SCRIPT = ROOT / "deploy/scripts/setup-github-oidc.sh"
POLICIES = ROOT / "deploy/policies"

# The account of whoever calls moto.
ACCOUNT = "123456789012"
BASICS = ["--account-id", ACCOUNT, "--org", "My-Org", "--repo", "6-disc-changer"]
NUMBERS = ["--org-id", "4711", "--repo-id", "815"]
STATE = f"six-disc-changer-pulumi-state-{ACCOUNT}"
BUCKETS = ["6-disc-changer-dev-sqlite-backups", "6-disc-changer-prod-sqlite-backups"]
BOUNDARY_ARN = f"arn:aws:iam::{ACCOUNT}:policy/six-disc-changer-backup-boundary"
DEPLOY, PREVIEW = "six-disc-changer-github-deploy", "six-disc-changer-github-preview"
PROVIDER_ARN = f"arn:aws:iam::{ACCOUNT}:oidc-provider/token.actions.githubusercontent.com"


def policy(name, **lists):
    """A policy file, filled in by other means than the script's."""
    buckets = [bucket + suffix for bucket in lists.pop("buckets", BUCKETS) for suffix in ("", "-replica", "-logs")]
    lists["bucket_arns"] = [f"arn:aws:s3:::{bucket}" for bucket in buckets]
    lists["object_arns"] = [f"arn:aws:s3:::{bucket}/*" for bucket in buckets if not bucket.endswith("-logs")]
    texts = {"partition": "aws", "account": ACCOUNT, "state_bucket": STATE, "bucket": STATE}

    def fill(node):
        if isinstance(node, dict):
            return {fill(key): fill(value) for key, value in node.items()}
        if isinstance(node, list):
            whole = [lists.get(str(element).strip("{}"), [element]) for element in node]
            return [fill(element) for elements in whole for element in elements]
        for key, value in texts.items():
            node = node.replace("{{%s}}" % key, value)
        assert "{{" not in node, node
        return node

    return fill(json.loads((POLICIES / f"{name}.json").read_text()))


class Aws(Moto):
    """What the script is run against, and what it left there."""

    def cli(self, *arguments):
        """What the AWS command line answers."""
        command = ["aws", *arguments, "--output", "json"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, *options, **env):
        return subprocess.run(
            [str(SCRIPT), *options], env={**self.env, **env}, capture_output=True, text=True, timeout=120
        )

    def intercepting(self, pattern, action):
        """An environment in which an `aws` of ours does `action` when its arguments match `pattern`."""
        folder = Path(tempfile.mkdtemp(dir=self.home))
        real = shutil.which("aws")
        (folder / "aws").write_text(f'#!/bin/sh\ncase "$*" in {pattern}) {action} ;; esac\nexec {real} "$@"\n')
        (folder / "aws").chmod(0o755)
        return {"PATH": f"{folder}:{self.env['PATH']}"}

    def trust(self, role):
        return self.client("iam").get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]

    def rights(self, role):
        iam = self.client("iam")
        names = iam.list_role_policies(RoleName=role)["PolicyNames"]
        return {name: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names}

    def boundary(self):
        iam = self.client("iam")
        versions = iam.list_policy_versions(PolicyArn=BOUNDARY_ARN)["Versions"]
        (default,) = [version["VersionId"] for version in versions if version["IsDefaultVersion"]]
        answer = iam.get_policy_version(PolicyArn=BOUNDARY_ARN, VersionId=default)
        return answer["PolicyVersion"]["Document"], len(versions)

    def everything(self):
        iam = self.client("iam")
        roles = [role["RoleName"] for role in iam.list_roles()["Roles"]]
        providers = {}
        for provider in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]:
            found = iam.get_open_id_connect_provider(OpenIDConnectProviderArn=provider["Arn"])
            providers[provider["Arn"]] = {key: found.get(key) for key in ("Url", "ClientIDList", "ThumbprintList")}
        policies = [policy["Arn"] for policy in iam.list_policies(Scope="Local")["Policies"]]
        return {
            "roles": {role: [self.trust(role), self.rights(role)] for role in roles},
            "providers": providers,
            "policies": {arn: self.boundary() for arn in policies},
            "buckets": [bucket["Name"] for bucket in self.client("s3").list_buckets()["Buckets"]],
        }


class SetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        assert shutil.which("aws"), "there is no aws: `tests/run deploy` installs it"
        cls.aws = Aws()
        cls.addClassCleanup(cls.aws.close)

    def setUp(self):
        self.aws.reset()

    def made(self, *options, **env):
        done = self.aws.run(*BASICS, *options, **env)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def refused(self, *options, **env):
        done = self.aws.run(*options, **env)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertEqual(done.stdout, "")
        return done.stderr

    def test_twice_makes_what_the_policy_files_say(self):
        said = self.made(*NUMBERS)
        first = self.aws.everything()
        self.assertEqual(self.made(*NUMBERS), said)
        self.assertEqual(self.aws.everything(), first)

        old, new = "repo:My-Org/6-disc-changer", "repo:My-Org@4711/6-disc-changer@815"
        read = policy("github-preview-policy")
        trusts = {
            DEPLOY: policy("github-trust-policy", subjects=[f"{form}:ref:refs/heads/main" for form in (old, new)]),
            PREVIEW: policy("github-trust-policy", subjects=[f"{form}:pull_request" for form in (old, new)]),
        }
        rights = {DEPLOY: {"read": read, "deploy": policy("github-deploy-policy")}, PREVIEW: {"read": read}}
        self.assertEqual(first["roles"], {role: [trusts[role], rights[role]] for role in (DEPLOY, PREVIEW)})
        self.assertEqual(first["policies"], {BOUNDARY_ARN: (policy("boundary-policy"), 1)})
        self.assertEqual(first["buckets"], [STATE])
        self.assertEqual(list(first["providers"]), [PROVIDER_ARN])
        provider = first["providers"][PROVIDER_ARN]
        self.assertEqual(provider["Url"].removeprefix("https://"), "token.actions.githubusercontent.com")
        self.assertEqual(provider["ClientIDList"], ["sts.amazonaws.com"])
        self.assertIn(f"AWS_ROLE_ARN              arn:aws:iam::{ACCOUNT}:role/{DEPLOY}", said)
        self.assertNotIn("note:", said)
        self.assertIn("protect the branch: main\n", said)

        # What people see who ask with the command line.
        role = self.aws.cli("iam", "get-role", "--role-name", DEPLOY)["Role"]
        self.assertEqual(role["AssumeRolePolicyDocument"], trusts[DEPLOY])
        asked = self.aws.cli("iam", "get-role-policy", "--role-name", DEPLOY, "--policy-name", "deploy")
        self.assertEqual(asked["PolicyDocument"], policy("github-deploy-policy"))
        asked = self.aws.cli("s3api", "get-bucket-policy", "--bucket", STATE)
        self.assertEqual(json.loads(asked["Policy"]), policy("bucket-policy"))

        for role, documents in rights.items():
            texts = [json.dumps(document, separators=(",", ":")) for document in documents.values()]
            self.assertLess(sum(map(len, texts)), 10_240, f"IAM's limit for all inline policies of {role}")

    def test_the_bucket_of_the_state_is_used_only_if_it_is_the_accounts_own(self):
        asked = self.aws.home / "asked-of-s3"
        self.made(**self.aws.intercepting("*s3api*", f'echo "$*" >>{asked}'))
        # A policy document goes on over further lines.
        calls = {line.split()[1]: line for line in asked.read_text().splitlines() if line.startswith("s3api ")}
        self.assertNotIn("--expected-bucket-owner", calls.pop("create-bucket"))
        others = ["head-bucket", "put-bucket-policy", "put-bucket-versioning", "put-public-access-block"]
        self.assertEqual(sorted(calls), others)
        for line in calls.values():
            self.assertIn(f"--expected-bucket-owner {ACCOUNT}", line)

    def test_other_places_and_other_names(self):
        said = self.made("--region", "eu-central-1", "--environment", "dev", "--environment", "prod", "--bucket", "mine")
        self.assertIn("note: without --org-id and --repo-id", said)
        self.assertIn("limit to protected branches: dev prod ", said)
        subjects = [f"repo:My-Org/6-disc-changer:environment:{name}" for name in ("dev", "prod")]
        self.assertEqual(self.aws.trust(DEPLOY), policy("github-trust-policy", subjects=subjects))
        self.assertEqual(self.aws.rights(DEPLOY)["deploy"], policy("github-deploy-policy", buckets=["mine"]))

        s3 = self.aws.client("s3")
        self.assertEqual(s3.get_bucket_location(Bucket=STATE)["LocationConstraint"], "eu-central-1")
        self.assertEqual(s3.get_bucket_versioning(Bucket=STATE)["Status"], "Enabled")
        block = s3.get_public_access_block(Bucket=STATE)["PublicAccessBlockConfiguration"]
        self.assertEqual(list(block.values()), [True] * 4)

    def test_what_is_there_is_brought_to_what_the_files_say(self):
        iam = self.aws.client("iam")
        iam.create_open_id_connect_provider(Url=f"https://{PROVIDER_ARN.split('/')[-1]}", ClientIDList=["theirs"])
        stranger = policy("github-trust-policy", subjects=["repo:stranger/*:*"])
        iam.create_role(RoleName=DEPLOY, AssumeRolePolicyDocument=json.dumps(stranger))
        wide = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
        iam.put_role_policy(RoleName=DEPLOY, PolicyName="deploy", PolicyDocument=wide)
        iam.create_policy(PolicyName="six-disc-changer-backup-boundary", PolicyDocument=wide)
        for _ in range(4):
            iam.create_policy_version(PolicyArn=BOUNDARY_ARN, PolicyDocument=wide, SetAsDefault=True)

        # moto does not know this one request.
        asked = self.aws.home / "asked"
        env = self.aws.intercepting("*add-client-id*", f'echo "$*" >>{asked}; exit 0')
        self.made("--branch", "release/1", **env)

        subjects = ["repo:My-Org/6-disc-changer:ref:refs/heads/release/1"]
        self.assertEqual(self.aws.trust(DEPLOY), policy("github-trust-policy", subjects=subjects))
        self.assertEqual(self.aws.rights(DEPLOY)["deploy"], policy("github-deploy-policy"))
        self.assertEqual(self.aws.boundary(), (policy("boundary-policy"), 5))
        (line,) = asked.read_text().splitlines()
        self.assertIn(f"--open-id-connect-provider-arn {PROVIDER_ARN} --client-id sts.amazonaws.com", line)

    def test_a_dry_run_shows_everything_and_does_nothing(self):
        before = self.aws.everything()
        said = self.made(*NUMBERS, "--dry-run")
        self.assertEqual(self.aws.everything(), before)
        for name in ("provider", DEPLOY, PREVIEW, STATE, "boundary"):
            self.assertRegex(said, f"would make sure of .*{name}")
        shown = [json.loads(text) for text in re.findall(r"^    \{\n.*?^    \}$", said, re.S | re.M)]
        for document in (policy("boundary-policy"), policy("github-deploy-policy"), policy("bucket-policy")):
            self.assertIn(document, shown)
        # Nobody is asked: it is the same without credentials and without AWS.
        alone = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
        self.assertEqual(self.made(*NUMBERS, "--dry-run", **alone), said)

    def test_credentials_of_another_account_are_refused(self):
        said = self.refused("--account-id", "999999999999", *BASICS[2:])
        self.assertIn(f"these credentials belong to account {ACCOUNT}, not to 999999999999", said)
        self.assertEqual(self.aws.everything()["roles"], {})

    def test_an_aws_that_does_not_answer_is_named(self):
        said = self.refused(*BASICS, AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
        self.assertIn("`aws sts get-caller-identity` must work first", said)

    def test_a_refusal_is_not_taken_for_absence(self):
        # The bucket of this name belongs to somebody else.
        answer = "An error occurred (403) when calling the HeadBucket operation: Forbidden"
        done = self.aws.run(*BASICS, **self.aws.intercepting("*head-bucket*", f'echo "{answer}" >&2; exit 254'))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("(403)", done.stderr)
        self.assertEqual(self.aws.everything()["buckets"], [])

    def test_bad_input_is_named(self):
        for options, because in [
            ([], "--account-id is missing"),
            (["--account-id", "123"], "--account-id `123` is not the number of an AWS account"),
            (["--account-id"], "--account-id takes a value"),
            (BASICS[:2], "--org is missing"),
            (BASICS[:4], "--repo is missing"),
            ([*BASICS, "--org", "*"], "--org `*` is not"),
            ([*BASICS, "--org", "my org"], "--org `my org` is not"),
            ([*BASICS, "--repo", "My-Org/6-disc-changer"], "without its organisation"),
            ([*BASICS, "--repo", "a|b"], "--repo `a|b` is not"),
            ([*BASICS, "--branch", "*"], "--branch `*` is not the name of a branch"),
            ([*BASICS, "--environment", "prod*"], "--environment `prod*` is not"),
            ([*BASICS, "--bucket", "My_Bucket"], "--bucket `My_Bucket` is not"),
            ([*BASICS, "--region", "auto"], "--region `auto` is not a region"),
            ([*BASICS, "--org-id", "4711"], "--repo-id is missing"),
            ([*BASICS, "--repo-id", "815"], "--org-id is missing"),
            ([*BASICS, "--org-id", "x", "--repo-id", "815"], "--org-id `x` is not"),
            ([*BASICS, "--thumbprint", "x"], "there is no option `--thumbprint`"),
        ]:
            with self.subTest(options=options):
                said = self.refused(*options)
                self.assertIn(because, said)
                self.assertIn("see --help", said)
        self.assertEqual(self.aws.everything()["roles"], {})


if __name__ == "__main__":
    unittest.main()
