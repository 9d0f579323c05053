package workers

import (
	"encoding/json"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// WelcomePath is where the API server answers machines that join, with a Welcome. The query
// parameter WelcomeToken has the ID of the token.
const (
	WelcomePath  = "/kthwd/cluster-info"
	WelcomeToken = "token"
)

// Welcome is the cluster's description for the bearer of a token.
type Welcome struct {
	Kubeconfig string `json:"kubeconfig"` // with the server, the CAs, and Cluster as an extension
	Signature  string `json:"signature"`  // of Kubeconfig, by the token's secret: a detached JWS
}

// Extension is the name of the extension of the kubeconfig's cluster that holds a Cluster.
const Extension = "kthwd"

// Cluster is what a kubelet must know of a cluster besides the server.
type Cluster struct {
	DNS    []string `json:"clusterDNS"`
	Domain string   `json:"clusterDomain"`
}

// Describe returns the description of a cluster: a kubeconfig without a user.
func Describe(server string, ca []byte, cluster Cluster) (string, error) {
	raw, err := json.Marshal(cluster)
	if err != nil {
		return "", err
	}
	c := clientcmdapi.NewConfig()
	c.Clusters[""] = &clientcmdapi.Cluster{
		Server: server, CertificateAuthorityData: ca,
		Extensions: map[string]runtime.Object{Extension: &runtime.Unknown{Raw: raw, ContentType: runtime.ContentTypeJSON}},
	}
	text, err := clientcmd.Write(*c)
	return string(text), err
}
