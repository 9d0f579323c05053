package discovery

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kthwd/appliance/text"
	"kthwd/lb"
)

// readKubeconfig returns the client configuration of a kubeconfig. The error is an
// *lb.Problem.
func readKubeconfig(path string) (*rest.Config, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, problem("want the kubeconfig of a user that may watch endpointslices in the namespace default", "%v", err)
	}
	return parseKubeconfig(path, file)
}

// parseKubeconfig returns the client configuration of the content of a kubeconfig.
func parseKubeconfig(path string, file []byte) (*rest.Config, error) {
	config, err := clientcmd.Load(file)
	if err != nil {
		return nil, problem("", "%s: not a kubeconfig: %s", path, text.Unquoted(err.Error()))
	}
	for _, c := range config.Clusters {
		c.LocationOfOrigin = path
	}
	for _, u := range config.AuthInfos {
		u.LocationOfOrigin = path
	}
	if err := clientcmd.ResolveLocalPaths(config); err != nil {
		return nil, problem("", "%s: %s", path, joinLines(err))
	}
	context := config.Contexts[config.CurrentContext]
	switch {
	case config.CurrentContext == "":
		return nil, problem("kubectl config use-context sets it", "%s has no current-context", path)
	case context == nil || config.Clusters[context.Cluster] == nil:
		return nil, problem("", "%s: its current-context %q has no cluster", path, config.CurrentContext)
	}
	if err := keptSecret(path, config.AuthInfos[context.AuthInfo]); err != nil {
		return nil, err
	}
	c, err := clientcmd.NewDefaultClientConfig(*config, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, problem("", "%s: %s", path, joinLines(err))
	}
	if u, err := url.Parse(c.Host); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, problem("want a server such as https://10.0.1.48:6443", "%s: server %q is not an https URL", path, c.Host)
	}
	if _, err := rest.TLSConfigFor(c); err != nil { // the files it names exist and fit together
		return nil, problem("", "%s: %s", path, joinLines(err))
	}
	c.QPS = -1 // no client-side limit: requests are rare and have their own pause
	c.UserAgent = "kthwd-lb-discovery"
	c.WarningHandler = rest.NoWarnings{}
	return c, nil
}

func problem(hint, format string, args ...any) error {
	return &lb.Problem{Field: "DiscoveryKubeconfig", Text: strings.TrimPrefix(fmt.Sprintf(format, args...), "open "), Hint: hint}
}

// keptSecret refuses a file with credentials that others can read, and any file that
// others can write, because its content is executed or trusted.
func keptSecret(path string, user *api.AuthInfo) error {
	forbidden := map[string]fs.FileMode{path: 0o002}
	if user != nil {
		if len(user.ClientKeyData) > 0 || user.Token != "" || user.Password != "" {
			forbidden[path] = 0o006
		}
		if user.ClientKey != "" {
			forbidden[user.ClientKey] = 0o006
		}
		if user.TokenFile != "" {
			forbidden[user.TokenFile] = 0o002 // a pod's own token is readable by every process in it
		}
	}
	for file, bits := range forbidden {
		info, err := os.Stat(file)
		var missing *fs.PathError
		switch {
		case errors.As(err, &missing):
			return problem("", "%s: %s: %v", path, file, missing.Err)
		case info.Mode().Perm()&bits != 0:
			return problem("chmod 600 "+text.ShellWord(file), "%s: readable or writable by others (mode %04o)", file, info.Mode().Perm())
		}
	}
	return nil
}
