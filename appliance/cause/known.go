package cause

import "regexp"

// routineErrors are words of upstream's errors that keep nothing from working: a conflict of two
// writers, which the later one repeats, the end of a request, and a file that is read every minute because no
// inotify instance is left (fs.inotify.max_user_instances), whose "too many open files" is not about descriptors.
var routineErrors = []string{
	"the object has been modified; please apply your changes to the latest version and try again",
	"context canceled",
	"error creating fsnotify watcher: ",                 // apiserver/pkg/server/dynamiccertificates
	"error creating file watcher, falling back to poll", // apiserver/pkg/util/filesystem/watchuntil.go
	"fsnotify watcher init: ",                           // kubernetes/pkg/util/filesystem/watcher.go
}

// noWatchLeft is the same for fs.inotify.max_user_watches: the disk has room. Any other error of that kind says why a
// file cannot be read.
var noWatchLeft = regexp.MustCompile(`error adding watch for file .+: no space left on device`)

// knownCauses is the table. The first row that matches counts, so a row stands before those
// whose words its errors may contain. A group that a command takes allows only characters
// without a meaning for a shell.
var knownCauses = []row{
	{words: "denied the request", match: `admission webhook \\?"([^"\\]+)\\?" denied the request:? (.+)`, kind: Webhook,
		text: `the admission webhook "$1" refuses its requests ($2)`, do: listWebhooks, name: ofWebhook},
	{words: "failed calling webhook", match: `failed calling webhook \\?"([^"\\]+)\\?"[:;] (?:failed to call webhook: )?(.+)`, kind: Webhook,
		text: `the admission webhook "$1" does not answer ($2)`, do: listWebhooks, lasting: true, name: ofWebhook},
	// Mutating policies are the ones that the second dispatcher serves (admission/plugin/policy/mutating/dispatcher.go).
	{words: "ValidatingAdmissionPolicy '", match: `ValidatingAdmissionPolicy '([a-z0-9.-]+)' with binding '([a-z0-9.-]+)' denied request: (.+?)(?:; |$)`, kind: Policy,
		text: `the validating admission policy $1 refuses the requests ($3)`, do: "kubectl delete validatingadmissionpolicybinding $2"},
	{words: "ValidatingAdmissionPolicy '", match: `ValidatingAdmissionPolicy '([a-z0-9.-]+)' denied request: (.+?)(?:; |$)`, kind: Policy,
		text: `the validating admission policy $1 refuses the requests ($2)`, do: "kubectl delete validatingadmissionpolicy $1"},
	{words: "' with binding '", match: `policy '([a-z0-9.-]+)' with binding '([a-z0-9.-]+)' denied request: (.+?)(?:; |$)`, kind: Policy,
		text: `the mutating admission policy $1 refuses the requests ($3)`, do: "kubectl delete mutatingadmissionpolicybinding $2"},
	{words: " denied request: ", match: `policy \\*"([a-z0-9.-]+)\\*" denied request: (.+?)(?:; |$)`, kind: Policy,
		text: `the mutating admission policy $1 refuses the requests ($2)`, do: "kubectl delete mutatingadmissionpolicy $1"},
	{words: "conversion webhook for", match: `conversion webhook for (\S+, Kind=\S+) failed: (.+)`, kind: Conversion,
		text: `the conversion webhook of $1 does not answer ($2)`, lasting: true,
		do: "kubectl get customresourcedefinitions -o=custom-columns=NAME:.metadata.name,KIND:.spec.names.kind,WEBHOOK:.spec.conversion.webhook.clientConfig"},

	// Before the two below, whose words an error of a key server is wrapped in: its keys are elsewhere, and
	// encryption-config.yaml lacks none. Upstream waits for a plugin until the deadline, and then has the last dial's error.
	{words: "failed to decrypt DEK, error: ", match: `failed to decrypt DEK, error: rpc error: code = (?:DeadlineExceeded|Unavailable|Canceled) .*dial unix (/[A-Za-z0-9_./@+-]+): `, kind: KeyServer,
		text: `the key server (a KMS plugin) does not answer at $1, so nothing that it has encrypted can be read`, public: noKeyServer, do: "ss -xlp src $1; if it shows no listener, start the KMS plugin, or read its log", lasting: true},
	{words: "failed to decrypt DEK, error: ", match: `failed to decrypt DEK, error: rpc error: code = (?:DeadlineExceeded|Unavailable|Canceled) desc = (.+)`, kind: KeyServer,
		text: `the key server (a KMS plugin) does not answer, so nothing that it has encrypted can be read ($1)`, do: startKeyServer, lasting: true},
	{words: "failed to decrypt DEK, error: ", match: `failed to decrypt DEK, error: (.+)`, kind: KeyServer,
		text: `the key server (a KMS plugin) does not decrypt what it has encrypted ($1)`, do: "read the log of the KMS plugin, and give it its old key back", lasting: true},
	{words: "failed to encrypt DEK, error: ", match: `failed to encrypt DEK, error: (.+)`, kind: KeyServer,
		text: `the key server (a KMS plugin) does not encrypt ($1)`, do: startKeyServer, lasting: true},
	// A plugin that is away while its keys are in the cache: reads go on, writes end after three minutes.
	{words: "encryptedDEKSource with keyID hash", match: `encryptedDEKSource with keyID hash .+ expired at (\S+)`, kind: KeyServer,
		text: `the key server (a KMS plugin) does not answer, and without it nothing is encrypted after $1`, public: noKeyServer, do: startKeyServer, lasting: true},

	{words: "unable to transform key", match: `unable to transform key \\*"(/[^"\\]+)\\*"`, kind: Decryption,
		text: `cannot decrypt $1: encryption-config.yaml has no key for it`, public: "cannot decrypt an object: encryption-config.yaml has no key for it", do: oldKey, lasting: true, name: ofKey},
	// From Kubernetes 1.37 on, whose AllowUnsafeMalformedObjectDeletion is on (apiserver/pkg/storage/etcd3/corrupt_obj_deleter.go).
	{words: "data from the storage is not transformable", match: `corrupt object, Code: \d+, Key: (/[^ ,"\\]+), `, kind: Decryption,
		text: `cannot decrypt $1: encryption-config.yaml has no key for it`, public: "cannot decrypt an object: encryption-config.yaml has no key for it", do: oldKey, lasting: true, name: ofKey},
	{words: "no matching prefix found", kind: Decryption, text: "cannot decrypt an object: encryption-config.yaml has no key for it", do: oldKey, lasting: true},
	{words: "identity transformer tried to read encrypted data", kind: Decryption, text: "cannot decrypt an object: encryption-config.yaml has no key for it", do: oldKey, lasting: true},
	{words: "output array was not large enough for encryption", kind: Decryption, text: "cannot decrypt an object: encryption-config.yaml has another key", do: oldKey, lasting: true},

	{words: "failing or missing response from", match: `(v[a-z0-9]+\.[a-z0-9.-]+) failed with: failing or missing response from [^:]+:[^:]+:?[^:]*: (.+)`, kind: APIService,
		text: `nothing answers for the APIService $1 ($2)`, do: "kubectl delete apiservice $1", lasting: true},
	{words: "unable to retrieve the complete list of server APIs", match: `server APIs: ([a-z0-9.-]+)/(v[a-z0-9]+): ([^,]+)`, kind: APIService,
		text: `nothing answers for the APIService $2.$1 ($3), so namespaces stay in Terminating`, do: "kubectl delete apiservice $2.$1", lasting: true},
	{words: "stale GroupVersion discovery", match: `stale GroupVersion discovery: ([a-z0-9.-]+)/(v[a-z0-9]+)`, kind: APIService,
		text: `nothing answers for the APIService $2.$1, so namespaces stay in Terminating`, do: "kubectl delete apiservice $2.$1", lasting: true},

	{words: "database space exceeded", kind: EtcdSpace, text: "etcd's database has reached its quota and accepts no more writes", do: "kthwd etcd space --fix"},
	{words: "cluster ID mismatch", kind: Peers, text: "another member of etcd belongs to another cluster", do: "kthwd member list"},
	{words: "prober found high clock drift", match: `prober found high clock drift(?:.*clock-drift=(\S+))?`, kind: Clock,
		text: "the clock of another controller differs from the one here: $1", do: "timedatectl", lasting: true},
	{words: "etcdserver: no leader", kind: EtcdLeader, text: "etcd has no leader", do: "kthwd member list"},
	{words: "etcdserver: request timed out", kind: EtcdTimeout, text: "etcd does not answer in time", do: "kthwd status -o wide"},

	{words: "too many open files", kind: Descriptors, text: "the process has no free file descriptor", do: "systemctl show " + ownUnit + " --property=LimitNOFILE"},
	{words: "no space left on device", match: `(?:(/[^ :"]+): )?no space left on device`, kind: DiskFull, text: "a disk is full: $1", do: "df -h"},
	{words: "disk quota exceeded", match: `(?:(/[^ :"]+): )?disk quota exceeded`, kind: DiskFull, text: "the disk quota of the user of kthwd is used up: $1", do: "repquota -a"},
	{words: "read-only file system", match: `(?:(/[^ :"]+): )?read-only file system`, kind: DiskReadOnly, text: "a file system is read-only: $1", do: diskErrors + "; then mount it read-write again"},
	{words: "input/output error", match: `(?:(/[^ :"]+): )?input/output error`, kind: DiskError, text: "a disk does not do what it is told: $1", do: diskErrors + "; the disk is probably broken"},

	{words: "x509: certificate has expired or is not yet valid", match: `not yet valid: current time (\S+) is after (\S+)`, kind: Certificate,
		text: "a certificate has expired at $2", do: "kthwd pki show"},
	{words: "x509: certificate has expired or is not yet valid", match: `not yet valid: current time (\S+) is before (\S+)`, kind: Certificate,
		text: "a certificate is valid only from $2 on, and the clock says $1", do: "timedatectl"},
	{words: "x509: certificate signed by unknown authority", match: `(?:https://([^/"\\]+).*)?x509: certificate signed by unknown authority`, kind: Certificate,
		text: "the CA here is not the one that has signed the certificate of the other side $1", do: "kthwd pki show"},
	{words: "x509: certificate is valid for", match: `x509: certificate is valid for (.+), not ([^" ]+)`, kind: Certificate,
		text: "the certificate of the other side is for $1, not for $2", do: "kthwd pki show"},
	{words: "because it doesn't contain any IP SANs", match: `cannot validate certificate for (\S+) because`, kind: Certificate,
		text: "the certificate of $1 has no IP address in it", do: "kthwd pki show"},
	{words: "unknown certificate authority", kind: Certificate, text: "the other side does not trust the CA of the certificate here", do: "kthwd pki show"},
	{words: "bad certificate", match: `tls: bad certificate`, kind: Certificate, text: "the other side refuses the certificate here", do: "kthwd pki show"},
	{words: "expired certificate", match: `tls: expired certificate`, kind: Certificate, text: "the certificate here has expired", do: "kthwd pki show"},
	{words: "the server has asked for the client to provide credentials", kind: Credentials,
		text: "the API server does not accept the credentials", do: "kthwd pki show", lasting: true},

	{words: "is forbidden: ", match: `User \\?"([A-Za-z0-9:._-]+)\\?" cannot ([a-z]+) resource \\?"([a-z0-9./-]+)\\?"(?: in API group \\?"([a-z0-9.-]*)\\?")?`, kind: Forbidden,
		text: `RBAC does not let $1 $2 $3`, do: "kubectl auth can-i $2 $3 --as=$1", lasting: true},
	{words: "exceeded quota: ", match: `exceeded quota: ([a-z0-9.-]+)`, kind: Quota, text: "the resource quota $1 is used up", do: "kubectl describe resourcequotas --all-namespaces"},
	{words: " usage per ", match: `((?:minimum|maximum) \S+ usage per .+)`, kind: Quota, text: "a limit range refuses the object: $1", do: "kubectl describe limitranges --all-namespaces"},
	{words: "because it is being terminated", match: `in namespace ([a-z0-9-]+) because`, kind: Terminating,
		text: "the namespace $1 is being deleted", do: "kubectl describe namespace $1"},
	{words: "connection refused", match: `dial tcp (\S+): connect: connection refused`, kind: Refused, text: "nothing listens at $1", do: "ss -ltnp"},
}

// Advice that several rows share.
const (
	diskErrors   = "look for errors of the disk: journalctl -k --lines=100"
	ownUnit      = "kthwd-controller" // which Names may replace
	listWebhooks = "kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations"

	noKeyServer    = "the key server (a KMS plugin) does not answer"
	startKeyServer = "start the KMS plugin at the endpoint in encryption-config.yaml, or read its log"
	oldKey         = "put the old key back into encryption-config.yaml as the second key, under its old name, give the first one another name, and restart kthwd"
)

// The kinds of known causes.
const (
	Webhook      = "webhook"
	Policy       = "admission_policy"
	Conversion   = "conversion"
	Decryption   = "decryption"
	KeyServer    = "key_server"
	APIService   = "apiservice"
	EtcdSpace    = "etcd_space"
	EtcdLeader   = "etcd_leader"
	EtcdTimeout  = "etcd_timeout"
	Peers        = "peers"
	Clock        = "clock"
	Descriptors  = "descriptors"
	DiskFull     = "disk_full"
	DiskError    = "disk_error"
	DiskReadOnly = "disk_read_only"
	Certificate  = "certificate"
	Credentials  = "credentials"
	Forbidden    = "forbidden"
	Quota        = "quota"
	Terminating  = "terminating"
	Refused      = "refused"
)

// Kinds lists the kinds of known causes with their meaning, for the documentation and for
// metrics, whose label has no other value than these.
var Kinds = []struct{ Kind, Means string }{
	{Webhook, "an admission webhook refuses the program's requests, does not answer, or gives answers that cannot be used"},
	{Policy, "an admission policy refuses the program's requests"},
	{Conversion, "the conversion webhook of a custom resource does not answer"},
	{Decryption, "encryption-config.yaml lacks the key of an object"},
	{KeyServer, "the key server that encrypts objects, a KMS plugin, does not answer or refuses"},
	{APIService, "nothing answers for an aggregated API"},
	{EtcdSpace, "etcd's database has reached its quota"},
	{EtcdLeader, "etcd has no leader"},
	{EtcdTimeout, "etcd does not answer in time"},
	{Peers, "a member of another cluster answers as a peer of etcd"},
	{Clock, "the clocks of two controllers differ"},
	{Descriptors, "the process has no free file descriptor"},
	{DiskFull, "a disk is full"},
	{DiskReadOnly, "a file system that kthwd writes to is read-only"},
	{DiskError, "a disk fails"},
	{Certificate, "a certificate has expired, is not valid yet, is from another CA or has another name"},
	{Credentials, "the API server does not accept a program's credentials"},
	{Forbidden, "RBAC refuses a program's request"},
	{Quota, "a resource quota or a limit range refuses a program's object"},
	{Terminating, "a namespace is being deleted"},
	{Refused, "nothing listens at an address"},
}
