package audit

import p "kthwd/appliance/program"

// stigRules are the rules of the STIG that concern a control plane's flags and files. Those on
// kubelets, nodes and workloads are not here.
var stigRules = []rule{
	{id: "V-242376", title: "Controller manager speaks TLS 1.2 or later", test: minTLS(p.ControllerManager)},
	{id: "V-242377", title: "Scheduler speaks TLS 1.2 or later", test: minTLS(p.Scheduler)},
	{id: "V-242378", title: "API server speaks TLS 1.2 or later", test: minTLS(p.APIServer)},
	{id: "V-242379", title: "etcd makes no certificate for clients itself", test: is(p.Etcd, "auto-tls", "false")},
	{id: "V-242380", title: "etcd makes no certificate for peers itself", test: is(p.Etcd, "peer-auto-tls", "false")},
	{id: "V-242381", title: "Each controller has its own service account", test: is(p.ControllerManager, "use-service-account-credentials", "true")},
	{id: "V-242382", title: "Node and RBAC decide", test: both(has(p.APIServer, "authorization-mode", "Node"), has(p.APIServer, "authorization-mode", "RBAC"))},
	{id: "V-242384", title: "Scheduler listens on 127.0.0.1", test: is(p.Scheduler, "bind-address", "127.0.0.1"), fix: "set profile: cis"},
	{id: "V-242385", title: "Controller manager listens on 127.0.0.1", test: is(p.ControllerManager, "bind-address", "127.0.0.1"), fix: "set profile: cis"},
	{id: "V-242386", title: "API server has no insecure port", test: unset(p.APIServer, "insecure-port")},
	{id: "V-242388", title: "API server has no insecure address", test: unset(p.APIServer, "insecure-bind-address")},
	{id: "V-242389", title: "API server has its secure port", test: set(p.APIServer, "secure-port")},
	{id: "V-242390", title: "No anonymous requests", test: orElse(is(p.APIServer, "anonymous-auth", "false"), anonymousLimited, "only the paths of probes answer without credentials")},
	{id: "V-242400", title: "No alpha APIs", test: noAlpha, why: "the guide serves all APIs"},
	{id: "V-242402", title: "There is an audit log", test: set(p.APIServer, "audit-log-path")},
	{id: "V-242403", title: "Audit policy records requests and answers", manual: true, why: "kthwd's policy has level Metadata: RequestResponse writes the content of every object, secrets too, into the log. A policy of yours at the same path replaces it"},
	{id: "V-242408", title: "Configuration file has mode 644", test: mode(configFile, 0o644), why: specFile},
	{id: "V-242409", title: "Controller manager shows no profiles", test: is(p.ControllerManager, "profiling", "false")},
	{id: "V-242410", title: "API server's ports are those that are allowed", manual: true, why: "compare with the list of your organisation: kthwd preflight shows all ports"},
	{id: "V-242411", title: "Scheduler's ports are those that are allowed", manual: true, why: "as the API server's"},
	{id: "V-242412", title: "Controllers' ports are those that are allowed", manual: true, why: "as the API server's"},
	{id: "V-242413", title: "etcd's ports are those that are allowed", manual: true, why: "as the API server's"},
	{id: "V-242418", title: "API server has strong cipher suites only", test: only(p.APIServer, "tls-cipher-suites", strongSuites)},
	{id: "V-242419", title: "API server verifies client certificates", test: set(p.APIServer, "client-ca-file")},
	{id: "V-242421", title: "Pods get the cluster's CA", test: set(p.ControllerManager, "root-ca-file")},
	{id: "V-242422", title: "API server has a serving certificate", test: both(set(p.APIServer, "tls-cert-file"), set(p.APIServer, "tls-private-key-file"))},
	{id: "V-242423", title: "etcd verifies client certificates", test: is(p.Etcd, "client-cert-auth", "true")},
	{id: "V-242426", title: "etcd verifies peers' certificates", test: is(p.Etcd, "peer-client-cert-auth", "true")},
	{id: "V-242427", title: "etcd has a key", test: set(p.Etcd, "key-file")},
	{id: "V-242428", title: "etcd has a serving certificate", test: set(p.Etcd, "cert-file")},
	{id: "V-242429", title: "API server verifies etcd's certificate", test: orElse(set(p.APIServer, "etcd-cafile"), socketOnly, throughSocket), fix: "set profile: cis"},
	{id: "V-242430", title: "API server has a client certificate for etcd", test: orElse(set(p.APIServer, "etcd-certfile"), socketOnly, throughSocket), fix: "set profile: cis"},
	{id: "V-242431", title: "API server has a client key for etcd", test: orElse(set(p.APIServer, "etcd-keyfile"), socketOnly, throughSocket), fix: "set profile: cis"},
	{id: "V-242432", title: "etcd has a peer certificate", test: set(p.Etcd, "peer-cert-file")},
	{id: "V-242433", title: "etcd has a peer key", test: set(p.Etcd, "peer-key-file")},
	{id: "V-242436", title: "ValidatingAdmissionWebhook is on", test: orElse(has(p.APIServer, "enable-admission-plugins", "ValidatingAdmissionWebhook"), lacks(p.APIServer, "disable-admission-plugins", "ValidatingAdmissionWebhook"), "it is on by default; the rule wants it written down")},
	{id: "V-242438", title: "A request has a time limit", test: flagTest(p.APIServer, "request-timeout", "set profile: cis, or --kube-apiserver-arg=request-timeout=1m0s", func(v string, set bool) bool { return set && v != "0" && v != "0s" }), why: "the default is a minute; the rule wants it written down"},
	{id: "V-242444", title: "Configuration file is root's", test: owner(configFile), why: specFile},
	{id: "V-242445", title: "etcd's data is etcd's own user's", test: owner(etcdDir)},
	{id: "V-242446", title: "Kubeconfigs are root's", test: owner(dataFiles("admin*.kubeconfig", "kube-*.kubeconfig"))},
	{id: "V-242451", title: "PKI directory and files are root's", test: owner(allPKI)},
	{id: "V-242459", title: "etcd's data has mode 644", test: mode(etcdDir, 0o755)},
	{id: "V-242460", title: "Administrator's kubeconfig has mode 644", test: mode(adminFiles, 0o644)},
	{id: "V-242461", title: "There is an audit policy", test: set(p.APIServer, "audit-policy-file")},
	{id: "V-242462", title: "Audit log rotates at 100 MB", test: atLeast(p.APIServer, "audit-log-maxsize", 100)},
	{id: "V-242463", title: "Audit log keeps 10 old files", test: atLeast(p.APIServer, "audit-log-maxbackup", 10), why: "the guide keeps 3", fix: "set profile: cis"},
	{id: "V-242464", title: "Audit log is kept 30 days", test: atLeast(p.APIServer, "audit-log-maxage", 30)},
	{id: "V-242465", title: "Audit log has a path", test: set(p.APIServer, "audit-log-path")},
	{id: "V-242466", title: "PKI certificates have mode 644", test: mode(dataFiles("*.pem"), 0o644)},
	{id: "V-242467", title: "PKI keys have mode 600", test: mode(keys, 0o600)},
	{id: "V-245542", title: "No basic authentication", test: unset(p.APIServer, "basic-auth-file")},
	{id: "V-245543", title: "No static tokens", test: unset(p.APIServer, "token-auth-file")},
	{id: "V-245544", title: "A client certificate for kubelets", test: both(set(p.APIServer, "kubelet-client-certificate"), set(p.APIServer, "kubelet-client-key"))},
	{id: "V-254800", title: "Pod Security has an admission configuration", test: podSecurity("baseline", "restricted"), why: "without it a namespace is privileged until it has a label"},
	{id: "V-254801", title: "Pod Security is on", test: orElse(has(p.APIServer, "feature-gates", "PodSecurity=true"), lacks(p.APIServer, "disable-admission-plugins", "PodSecurity"), "the feature gate of the rule is gone since 1.28: the plugin is on by default")},
	{id: "V-274882", title: "Secrets are encrypted at rest", test: strongProvider},
}

// minTLS wants the oldest version to be written down.
func minTLS(name string) test {
	return flagTest(name, "tls-min-version", "set profile: cis, or --"+name+"-arg=tls-min-version=VersionTLS12", func(v string, _ bool) bool {
		return v == "VersionTLS12" || v == "VersionTLS13"
	})
}
