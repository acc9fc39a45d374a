#!/usr/bin/env bash
# Lets GitHub Actions deploy the infrastructure without a key: see --help.
#
# Running it again changes nothing, or brings what is there back to what the policy files say.
set -euo pipefail

POLICIES="$(cd "$(dirname "${BASH_SOURCE[0]}")/../policies" && pwd)"
ISSUER=token.actions.githubusercontent.com
AUDIENCE=sts.amazonaws.com
DEPLOY_ROLE=six-disc-changer-github-deploy
PREVIEW_ROLE=six-disc-changer-github-preview
BOUNDARY=six-disc-changer-backup-boundary
# IAM keeps five versions of a managed policy and refuses a sixth.
VERSIONS_MAX=5

usage() {
    cat <<HELP
usage: setup-github-oidc.sh --account-id ID --org NAME --repo NAME [OPTION...]

Makes in an AWS account, with the credentials the AWS command line finds:
  the identity provider of GitHub Actions
  $BOUNDARY        the most that a role for backups can be given
  $DEPLOY_ROLE          for the workflow on the branch (the secret AWS_ROLE_ARN)
  $PREVIEW_ROLE         for pull requests: it only reads
  six-disc-changer-pulumi-state-ID        the bucket with Pulumi's state

  --account-id ID      the account, 12 digits; credentials of another one are refused
  --org NAME           the organisation or user on GitHub, spelled as GitHub spells it
  --repo NAME          the repository, without the organisation
  --org-id N           } the two numbers of a repository that was created, renamed or transferred since
  --repo-id N          } July 15, 2026: its tokens carry them. To see them:
                         gh api repos/ORG/REPO --jq '.owner.id, .id'
  --branch NAME        the branch that may deploy (default: main)
  --environment NAME   trust this environment of GitHub instead of the branch; may be repeated; any branch
                       can name it unless its settings on GitHub say which may
  --bucket NAME        a bucket the infrastructure has; may be repeated (default:
                         6-disc-changer-dev-sqlite-backups and 6-disc-changer-prod-sqlite-backups)
  --region NAME        of the state's bucket (default: us-east-1)
  --dry-run            print what would be made, and ask AWS nothing
HELP
}

fail() {
    printf 'setup-github-oidc.sh: %s\n' "$*" >&2
    exit 1
}
misused() { fail "$*; see --help"; }
say() { printf '%s\n' "$*"; }

# What somebody set for his own eyes must not change the answers read here.
export AWS_PAGER='' AWS_DEFAULT_OUTPUT=json

[ "${BASH_VERSINFO[0]}" -ge 5 ] || fail "this takes bash 5 or later, and this one is $BASH_VERSION (macOS: brew install bash)"

# --- what is asked for ---------------------------------------------------------------------------

account='' org='' repo='' org_id='' repo_id='' branch=main region=us-east-1 dry_run=false
environments=() buckets=()
while [ "$#" -gt 0 ]; do
    case "$1" in
    --help | -h)
        usage
        exit
        ;;
    --dry-run)
        dry_run=true
        shift
        continue
        ;;
    --account-id | --org | --repo | --org-id | --repo-id | --branch | --environment | --bucket | --region) ;;
    *) misused "there is no option \`$1\`" ;;
    esac
    [ "$#" -ge 2 ] || misused "$1 takes a value"
    case "$1" in
    --account-id) account=$2 ;;
    --org) org=$2 ;;
    --repo) repo=$2 ;;
    --org-id) org_id=$2 ;;
    --repo-id) repo_id=$2 ;;
    --branch) branch=$2 ;;
    --environment) environments+=("$2") ;;
    --bucket) buckets+=("$2") ;;
    --region) region=$2 ;;
    esac
    shift 2
done
[ "${#buckets[@]}" -gt 0 ] || buckets=(6-disc-changer-dev-sqlite-backups 6-disc-changer-prod-sqlite-backups)

# Refuses a value that is not wholly of the pattern: a wildcard in a trust policy would trust strangers.
must_match() {
    local option=$1 value=$2 pattern=$3 meaning=$4
    [ -n "$value" ] || misused "$option is missing: $meaning"
    [[ "$value" =~ ^($pattern)$ ]] || misused "$option \`$value\` is not $meaning"
}
must_match --account-id "$account" '[0-9]{12}' "the number of an AWS account, 12 digits"
must_match --org "$org" '[A-Za-z0-9][A-Za-z0-9-]{0,38}' "the name of an organisation or user on GitHub"
must_match --repo "$repo" '[A-Za-z0-9._-]{1,100}' "the name of a repository, without its organisation"
must_match --branch "$branch" '[A-Za-z0-9][A-Za-z0-9._/-]{0,199}' "the name of a branch"
must_match --region "$region" '[a-z]{2}(-[a-z]+){1,2}-[0-9]{1,2}' "a region of AWS"
for environment in "${environments[@]}"; do
    must_match --environment "$environment" '[A-Za-z0-9][A-Za-z0-9._-]{0,254}' "the name of an environment of GitHub"
done
for bucket in "${buckets[@]}"; do
    must_match --bucket "$bucket" '[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]' "the name of a bucket"
done
if [ -n "$org_id$repo_id" ]; then
    must_match --org-id "$org_id" '[1-9][0-9]{0,19}' "the number of the organisation; both numbers are needed"
    must_match --repo-id "$repo_id" '[1-9][0-9]{0,19}' "the number of the repository; both numbers are needed"
fi

# --- what follows from it ------------------------------------------------------------------------

# The elements of a JSON array.
json_list() {
    local list='' element
    for element in "$@"; do list+="${list:+, }\"$element\""; done
    printf '%s' "$list"
}

# The subjects of tokens with this end; with the numbers known, GitHub's old form and its new one.
subjects() {
    local end
    for end in "$@"; do
        printf 'repo:%s/%s:%s\n' "$org" "$repo" "$end"
        [ -z "$org_id" ] || printf 'repo:%s@%s/%s@%s:%s\n' "$org" "$org_id" "$repo" "$repo_id" "$end"
    done
}

if [ "${#environments[@]}" -gt 0 ]; then
    mapfile -t deploy_subjects < <(subjects "${environments[@]/#/environment:}")
    gate="limit to protected branches: ${environments[*]} (environments are open to every branch)"
else
    mapfile -t deploy_subjects < <(subjects "ref:refs/heads/$branch")
    gate="protect the branch: $branch"
fi
mapfile -t preview_subjects < <(subjects pull_request)
state_bucket="six-disc-changer-pulumi-state-$account"

# The partition of the credentials' account: aws, aws-us-gov or aws-cn.
partition=aws
if [ "$dry_run" = false ]; then
    command -v aws >/dev/null || fail "there is no AWS command line: https://aws.amazon.com/cli/"
    caller="$(aws sts get-caller-identity --query '[Account, Arn]' --output text)" ||
        fail "AWS does not know these credentials: \`aws sts get-caller-identity\` must work first"
    read -r caller_account caller_arn <<<"$caller"
    [ "$caller_account" = "$account" ] ||
        fail "these credentials belong to account $caller_account, not to $account: nothing was changed"
    partition="$(cut -d: -f2 <<<"$caller_arn")"
fi
provider_arn="arn:$partition:iam::$account:oidc-provider/$ISSUER"
boundary_arn="arn:$partition:iam::$account:policy/$BOUNDARY"

bucket_arns=() object_arns=()
for bucket in "${buckets[@]}"; do
    for name in "$bucket" "$bucket-replica" "$bucket-logs"; do bucket_arns+=("arn:$partition:s3:::$name"); done
    for name in "$bucket" "$bucket-replica"; do object_arns+=("arn:$partition:s3:::$name/*"); done
done

# A policy file with its placeholders replaced; those of one role are arguments, as sed expressions.
filled() {
    local file=$1
    shift
    sed -e "s|{{partition}}|$partition|g" -e "s|{{account}}|$account|g" \
        -e "s|{{state_bucket}}|$state_bucket|g" \
        -e "s|\"{{bucket_arns}}\"|$(json_list "${bucket_arns[@]}")|" \
        -e "s|\"{{object_arns}}\"|$(json_list "${object_arns[@]}")|" \
        "$@" "$POLICIES/$file.json"
}
trust() { filled github-trust-policy -e "s|\"{{subjects}}\"|$(json_list "$@")|"; }

# --- making it so --------------------------------------------------------------------------------

# Whether AWS knows the thing a question is about; any other refusal ends the script.
known() {
    local answer
    answer="$("$@" 2>&1 >/dev/null)" && return
    case "$answer" in
    *NoSuchEntity* | *"(404)"*) return 1 ;;
    *) fail "$answer" ;;
    esac
}

planned() {
    [ "$dry_run" = true ] || return 1
    say "would make sure of $1"
    [ -z "${2:-}" ] || say "    ${2//$'\n'/$'\n    '}"
}

ensure_provider() {
    planned "the identity provider https://$ISSUER for the audience $AUDIENCE, without thumbprints" && return
    if ! known aws iam get-open-id-connect-provider --open-id-connect-provider-arn "$provider_arn"; then
        aws iam create-open-id-connect-provider --url "https://$ISSUER" --client-id-list "$AUDIENCE" >/dev/null
    elif [ "$(aws iam get-open-id-connect-provider --open-id-connect-provider-arn "$provider_arn" \
        --query "contains(ClientIDList, '$AUDIENCE')")" != true ]; then
        # Others in the account may use it too: what it has stays.
        aws iam add-client-id-to-open-id-connect-provider \
            --open-id-connect-provider-arn "$provider_arn" --client-id "$AUDIENCE"
    fi
    say "identity provider: $provider_arn"
}

ensure_boundary() {
    local document
    document="$(filled boundary-policy)"
    planned "the managed policy $BOUNDARY" "$document" && return
    if ! known aws iam get-policy --policy-arn "$boundary_arn"; then
        aws iam create-policy --policy-name "$BOUNDARY" --policy-document "$document" >/dev/null
    else
        local version standing
        version="$(aws iam get-policy --policy-arn "$boundary_arn" --query Policy.DefaultVersionId --output text)"
        standing="$(aws iam get-policy-version --policy-arn "$boundary_arn" --version-id "$version" \
            --query PolicyVersion.Document --output json)"
        if [ "$(tr -d '[:space:]' <<<"$standing")" != "$(tr -d '[:space:]' <<<"$document")" ]; then
            make_room_for_version
            aws iam create-policy-version --policy-arn "$boundary_arn" --policy-document "$document" \
                --set-as-default >/dev/null
        fi
    fi
    say "boundary: $boundary_arn"
}

make_room_for_version() {
    local versions
    # Oldest last.
    read -r -a versions <<<"$(aws iam list-policy-versions --policy-arn "$boundary_arn" --output text \
        --query 'reverse(sort_by(Versions, &CreateDate))[?!IsDefaultVersion].VersionId')"
    [ "${#versions[@]}" -lt "$((VERSIONS_MAX - 1))" ] ||
        aws iam delete-policy-version --policy-arn "$boundary_arn" --version-id "${versions[-1]}"
}

ensure_role() {
    local name=$1 trust=$2 description=$3
    planned "the role $name, with this trust" "$trust" && return
    if known aws iam get-role --role-name "$name"; then
        aws iam update-assume-role-policy --role-name "$name" --policy-document "$trust"
    else
        aws iam create-role --role-name "$name" --description "$description" \
            --assume-role-policy-document "$trust" >/dev/null
    fi
    say "role: arn:$partition:iam::$account:role/$name"
}

ensure_rights() {
    local role=$1 name=$2 document=$3
    planned "its policy $name" "$document" && return
    aws iam put-role-policy --role-name "$role" --policy-name "$name" --policy-document "$document"
}

ensure_state_bucket() {
    local document
    document="$(filled bucket-policy -e "s|{{bucket}}|$state_bucket|g")"
    planned "the bucket $state_bucket in $region: private, versioned, over TLS only" "$document" && return
    # Its name can be foretold: whoever made it first, and lets us in, would read and write our state.
    local ours=(--bucket "$state_bucket" --expected-bucket-owner "$account")
    if ! known aws s3api head-bucket "${ours[@]}"; then
        local location=()
        # S3 takes every region there but its first.
        [ "$region" = us-east-1 ] || location=(--create-bucket-configuration "LocationConstraint=$region")
        aws s3api create-bucket --bucket "$state_bucket" --region "$region" "${location[@]}" >/dev/null
    fi
    aws s3api put-public-access-block "${ours[@]}" --public-access-block-configuration \
        BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
    aws s3api put-bucket-versioning "${ours[@]}" --versioning-configuration Status=Enabled
    aws s3api put-bucket-policy "${ours[@]}" --policy "$document"
    say "state: s3://$state_bucket?region=$region"
}

ensure_provider
ensure_boundary
ensure_state_bucket
ensure_role "$DEPLOY_ROLE" "$(trust "${deploy_subjects[@]}")" "GitHub Actions of $org/$repo deploy the infrastructure"
ensure_rights "$DEPLOY_ROLE" read "$(filled github-preview-policy)"
ensure_rights "$DEPLOY_ROLE" deploy "$(filled github-deploy-policy)"
ensure_role "$PREVIEW_ROLE" "$(trust "${preview_subjects[@]}")" "Pull requests of $org/$repo preview the infrastructure"
ensure_rights "$PREVIEW_ROLE" read "$(filled github-preview-policy)"

[ -n "$org_id" ] || say "note: without --org-id and --repo-id, AWS refuses a repository that is newer than July 15, 2026"
[ "$dry_run" = false ] || exit 0
cat <<DONE

Secrets for $org/$repo on GitHub:
  AWS_ROLE_ARN              arn:$partition:iam::$account:role/$DEPLOY_ROLE
  AWS_REGION                $region
  AWS_ACCOUNT_ID            $account
  PULUMI_CONFIG_PASSPHRASE  a passphrase of your own

Whoever gets a commit deployed decides about the infrastructure, and so about the backups. On GitHub,
  $gate

GitHub writes only roles within the boundary. Give the stacks' roles theirs, once, with your own credentials:
  pulumi config set sqlite-backup-restore:permissionsBoundary true && pulumi up
DONE
