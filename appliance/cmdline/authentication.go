package cmdline

import (
	"errors"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"

	"kthwd/appliance/advice"
	"kthwd/appliance/program"
)

// checkAuthentication reads the authentication configuration as the API server does
// (kubeapiserver/options/authentication.go:loadAuthenticationConfig, not exported).
func checkAuthentication(args []program.Arg) error {
	path := program.Value(args, program.KeyAuthentication)
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = validAuthentication(data, program.Value(args, "service-account-issuer"))
	}
	if err != nil {
		return advice.With(fmt.Errorf("%s: %w", path, err), "correct the file; or move it away, and kthwd writes its own")
	}
	return nil
}

func validAuthentication(data []byte, issuer string) error {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	decoded, err := runtime.Decode(codecs.UniversalDecoder(), data)
	if err != nil {
		// A strict error names fields; others may quote the file.
		if runtime.IsStrictDecodingError(err) {
			return err
		}
		return errors.New("is no AuthenticationConfiguration of apiserver.config.k8s.io/v1")
	}
	config, ok := decoded.(*apiserver.AuthenticationConfiguration)
	if !ok {
		return fmt.Errorf("is a %T, not an AuthenticationConfiguration", decoded)
	}
	return validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), config, []string{issuer}).ToAggregate()
}
